//! `inspect`: whole documents, as indented JSON or through a template.

use gotmpl::Value;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value as Json;

use super::template::{Documents, Markup, Template, TemplateFailure};
use crate::units::Clock;

/// How documents are printed, read from `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inspect {
    /// An array, indented by four spaces.
    Indented,
    /// An array in one line.
    Compact,
    /// One rendering of a template for each document.
    Template(String),
}

/// What was printed, and what could not be.
#[derive(Debug)]
pub(crate) struct Inspected {
    pub(crate) text: String,
    pub(crate) failures: Vec<TemplateFailure>,
}

impl Inspect {
    /// Reads the value of `--format`.
    ///
    /// # Errors
    /// The template does not parse; nothing needs to be looked up then.
    pub(crate) fn read(format: Option<&str>) -> Result<Self, TemplateFailure> {
        match format.unwrap_or_default() {
            "" => Ok(Self::Indented),
            "json" => Ok(Self::Compact),
            template => {
                Template::documents(template, "", Documents::default(), Markup::Plain)?;
                Ok(Self::Template(template.to_owned()))
            }
        }
    }

    /// Whether a member of the documents may be shown; if not, it need not be found out.
    pub(crate) fn may_show(&self, member: &str) -> bool {
        match self {
            Self::Indented | Self::Compact => true,
            Self::Template(source) => Template::documents(source, "", Documents::default(), Markup::Plain)
                .map_or(true, |template| template.may_look_at(member)),
        }
    }

    /// Prints `documents`; `subject` is what one is, "an image". A document that the template fails on is left out.
    pub(crate) fn render(&self, documents: &[Json], subject: &'static str, clock: &Clock) -> Inspected {
        let mut failures = Vec::new();
        let text = match self {
            Self::Indented => format!("{}\n", indented(documents)),
            Self::Compact => format!("{}\n", Json::Array(documents.to_vec())),
            Self::Template(source) => {
                let mut text = String::new();
                for document in documents {
                    match render_one(source, document, subject, clock) {
                        Ok(line) => {
                            text.push_str(&line);
                            text.push('\n');
                        }
                        Err(failure) => failures.push(failure),
                    }
                }
                if text.is_empty() {
                    text.push('\n');
                }
                text
            }
        };
        Inspected { text, failures }
    }
}

/// JSON with Docker's indentation. JSON's writers escape the first 32 characters; terminals obey those from U+0080 to U+009F, too,
/// and an image may hold any.
pub(crate) fn indented<T: Serialize + ?Sized>(document: &T) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match document.serialize(&mut serializer) {
        Ok(()) => without_controls(String::from_utf8_lossy(&out).into_owned()),
        Err(_) => String::new(),
    }
}

fn without_controls(json: String) -> String {
    let is_control = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    if !json.contains(is_control) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        // Outside of strings there is none.
        if is_control(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

fn render_one(
    source: &str,
    document: &Json,
    subject: &'static str,
    clock: &Clock,
) -> Result<String, TemplateFailure> {
    let mut documents = Documents::default();
    let value = Typed { documents: &mut documents, clock }.value("", document);
    Template::documents(source, subject, documents, Markup::Plain)?.render(&value)
}

/// JSON as Go's typed structures would hold it: a missing list is an empty list, a time prints as a time.
struct Typed<'a> {
    documents: &'a mut Documents,
    clock: &'a Clock,
}

/// What Go prints for a member that JSON leaves out or sets to `null`.
enum Zero {
    List,
    Map,
    Text,
    Flag,
    Nothing,
}

/// Members of an image that JSON may leave out.
const OPTIONAL: [(&str, Zero); 6] = [
    ("Variant", Zero::Text),
    ("OsVersion", Zero::Text),
    ("Comment", Zero::Text),
    ("Author", Zero::Text),
    ("Parent", Zero::Text),
    ("DockerVersion", Zero::Text),
];

/// Members of an image's `Config` that JSON may leave out.
const OPTIONAL_IN_CONFIG: [(&str, Zero); 9] = [
    ("ExposedPorts", Zero::Map),
    ("Volumes", Zero::Map),
    ("Labels", Zero::Map),
    ("Shell", Zero::List),
    ("OnBuild", Zero::List),
    ("StopSignal", Zero::Text),
    ("ArgsEscaped", Zero::Flag),
    ("Healthcheck", Zero::Nothing),
    ("StopTimeout", Zero::Nothing),
];

impl Typed<'_> {
    fn value(&mut self, name: &str, document: &Json) -> Value {
        match document {
            Json::Null => {
                let value = Self::zero(name);
                self.documents.remember(value, document)
            }
            Json::Object(members) if members.is_empty() && !name.is_empty() && name.contains('/') => {
                // The values of ExposedPorts and Volumes are empty structures: `map[80/tcp:{}]`.
                self.documents.remember(Value::String("{}".into()), document)
            }
            Json::Object(members) => {
                let mut map: std::collections::BTreeMap<std::sync::Arc<str>, Value> = members
                    .iter()
                    .map(|(member, value)| (member.as_str().into(), self.value(member, value)))
                    .collect();
                let optional = match name {
                    "" if members.contains_key("RootFS") => OPTIONAL.as_slice(),
                    "Config" => OPTIONAL_IN_CONFIG.as_slice(),
                    _ => &[],
                };
                // Docker's structure and its JSON name it differently, and templates may use either.
                if let (true, Some(id)) = (name.is_empty(), map.get("Id").cloned()) {
                    map.entry("ID".into()).or_insert(id);
                }
                for (member, zero) in optional {
                    map.entry((*member).into()).or_insert_with(|| match zero {
                        Zero::Text | Zero::Flag => zero.value(),
                        Zero::List | Zero::Map | Zero::Nothing => {
                            self.documents.remember(zero.value(), &Json::Null)
                        }
                    });
                }
                self.documents.remember(Value::Map(map.into()), document)
            }
            Json::Array(elements) => {
                Value::List(elements.iter().map(|element| self.value("", element)).collect())
            }
            Json::String(text) if name == "LastTagTime" => match text.parse::<Timestamp>() {
                Ok(time) => {
                    let shown = Value::String(self.clock.full(time).into());
                    self.documents.remember(shown, document)
                }
                Err(_) => Documents::scalar(document),
            },
            scalar => Documents::scalar(scalar),
        }
    }

    fn zero(name: &str) -> Value {
        match name {
            "Labels" | "Volumes" | "ExposedPorts" | "Data" => Zero::Map,
            "Cmd" | "Entrypoint" | "Env" | "OnBuild" | "Shell" | "RepoTags" | "RepoDigests" | "Layers" => {
                Zero::List
            }
            _ => Zero::Nothing,
        }
        .value()
    }
}

impl Zero {
    fn value(&self) -> Value {
        match self {
            Self::List => Value::List(Vec::new().into()),
            Self::Map => Value::Map(std::sync::Arc::default()),
            Self::Text => Value::String("".into()),
            Self::Flag => Value::Bool(false),
            Self::Nothing => Value::Nil,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;
    use serde_json::json;

    fn image() -> Json {
        json!({
            "Id": "sha256:0f7396cbbc2a",
            "RepoTags": ["layers:1", "layers:2"],
            "RepoDigests": [],
            "Created": "2026-11-21T06:15:37.166624422Z",
            "Config": {
                "User": "",
                "ExposedPorts": {"443/tcp": {}, "80/tcp": {}},
                "Env": ["PATH=/bin", "GREETING=hello"],
                "Cmd": ["cat /opt/hello.txt"],
                "Entrypoint": null,
                "Volumes": null,
                "Labels": {"maintainer": "me <me@example.org>", "version": "1.0"}
            },
            "Architecture": "amd64",
            "Size": 7797788,
            "GraphDriver": {"Data": {"UpperDir": "/store/overlay2/x/diff"}, "Name": "overlay2"},
            "RootFS": {"Type": "layers", "Layers": ["sha256:1bcc", "sha256:f3d2"]},
            "Metadata": {"LastTagTime": "2026-11-21T06:15:37.541850053Z"}
        })
    }

    fn inspect(format: Option<&str>, documents: &[Json]) -> Inspected {
        let clock = Clock { now: Timestamp::UNIX_EPOCH, zone: TimeZone::UTC };
        Inspect::read(format).unwrap().render(documents, "an image", &clock)
    }

    #[track_caller]
    fn check(format: &str, expect: &str) {
        let inspected = inspect(Some(format), &[image()]);
        assert!(inspected.failures.is_empty(), "{format}: {:?}", inspected.failures);
        assert_eq!(inspected.text.strip_suffix('\n'), Some(expect), "{format}");
    }

    #[test]
    fn a_member_is_found_out_when_it_may_be_shown() {
        for (format, shown) in [
            ("", true),
            ("json", true),
            ("{{.Id}}", false),
            ("{{json .}}", true),
            ("{{ . | json }}", true),
            ("{{json $}}", true),
            ("{{json (.)}}", true),
            ("{{.GraphDriver.Name}}", true),
            ("{{($).GraphDriver}}", true),
            ("{{$.GraphDriver.Data}}", true),
            ("{{index . \"GraphDriver\"}}", true),
            ("{{$all := .}}{{index $all \"GraphDriver\"}}", true),
            ("{{with .}}{{.Id}}{{end}}", true),
            ("{{range $name, $value := .}}{{$value}}{{end}}", true),
            ("{{define \"x\"}}{{.Data}}{{end}}{{template \"x\" .GraphDriver}}", true),
            ("{{if .Id}}{{else}}{{.GraphDriver}}{{end}}", true),
            ("{{.Id}} GraphDriver {{\"{{.}}\"}}", false),
            ("{{$id := .Id}}{{$id}} {{$.Os}}", false),
            ("{{json .Config.Labels.GraphDriver}}", false),
            ("{{range $tag := .RepoTags}}{{$tag}}{{end}}", false),
        ] {
            assert_eq!(Inspect::read(Some(format)).unwrap().may_show("GraphDriver"), shown, "{format}");
        }
    }

    #[test]
    fn templates() {
        check("{{.Id}}", "sha256:0f7396cbbc2a");
        check("{{.ID}}", "sha256:0f7396cbbc2a");
        check("{{.RootFS.Layers}}", "[sha256:1bcc sha256:f3d2]");
        check("{{json .RootFS.Layers}}", r#"["sha256:1bcc","sha256:f3d2"]"#);
        check(
            "{{.Config.ExposedPorts}} {{.Config.Labels}}",
            "map[443/tcp:{} 80/tcp:{}] map[maintainer:me <me@example.org> version:1.0]",
        );
        check("{{json .Config.ExposedPorts}}", r#"{"443/tcp":{},"80/tcp":{}}"#);
        check("{{range $port, $_ := .Config.ExposedPorts}}{{$port}};{{end}}", "443/tcp;80/tcp;");
        check("{{json .Config.Labels}}", r#"{"maintainer":"me <me@example.org>","version":"1.0"}"#);
        check("{{.Config.Entrypoint}} {{json .Config.Entrypoint}}", "[] null");
        check("{{.Config.Volumes}} {{json .Config.Volumes}}", "map[] null");
        check(
            "{{json .Config.Shell}} {{json .Config.Healthcheck}} [{{.Variant}}] {{json .Variant}}",
            "null null [] \"\"",
        );
        check(
            "{{printf \"%s %v %5d|%q\" .RepoTags .Config.Cmd .Size .Architecture}}",
            "[layers:1 layers:2] [cat /opt/hello.txt] 7797788|\"amd64\"",
        );
        check("{{if .Config.Entrypoint}}yes{{else}}no{{end}}", "no");
        check("{{.Config.Shell}} {{.Config.StopSignal}} {{.Config.Healthcheck}}", "[]  <no value>");
        check("{{range .Config.Env}}{{println .}}{{end}}", "PATH=/bin\nGREETING=hello\n");
        check("{{index .Config.Labels \"version\"}}|{{index .Config.Labels \"none\"}}|", "1.0||");
        check("{{.Config.Labels.none}} {{.GraphDriver.Data.LowerDir}}", "<no value> <no value>");
        check(
            "{{.Size}} {{.Architecture}} {{.Created}} {{.RepoTags}} {{len .RootFS.Layers}}",
            "7797788 amd64 2026-11-21T06:15:37.166624422Z [layers:1 layers:2] 2",
        );
        check("{{range $i, $l := .RootFS.Layers}}{{$i}}={{$l}} {{end}}", "0=sha256:1bcc 1=sha256:f3d2 ");
        check("{{.GraphDriver.Data.UpperDir}} {{.GraphDriver.Name}}", "/store/overlay2/x/diff overlay2");
        check("{{.Metadata.LastTagTime}}", "2026-11-21 06:15:37.541850053 +0000 UTC");
        check("{{json .Metadata}}", r#"{"LastTagTime":"2026-11-21T06:15:37.541850053Z"}"#);
        check("{{json .Metadata.LastTagTime}}", r#""2026-11-21T06:15:37.541850053Z""#);
        check("{{json .}}", &image().to_string());
        check("{{join .RepoTags \",\"}}", "layers:1,layers:2");
        check("{{with index .RepoTags 0}}{{.}}{{end}}", "layers:1");
        check("{{index (split (index .Config.Env 1) \"=\") 1}}", "hello");
        check("{{(index .RepoTags 1) | upper}}", "LAYERS:2");
        check("{{range .Config.Env}}{{if eq (slice . 0 4) \"PATH\"}}{{slice . 5}}{{end}}{{end}}", "/bin");
    }

    #[test]
    fn documents() {
        assert_eq!(inspect(None, &[]).text, "[]\n");
        assert_eq!(
            inspect(None, &[json!({"b": [], "a": {"c": 1}})]).text,
            "[\n    {\n        \"b\": [],\n        \"a\": {\n            \"c\": 1\n        }\n    }\n]\n"
        );
        let controls = json!({"\u{9b}k": "\u{1b}[31m\u{9b}31m\u{7f}ä\u{a0}"});
        let shown = inspect(None, std::slice::from_ref(&controls)).text;
        assert!(
            shown.contains(r#""\u009bk": "\u001b[31m\u009b31m\u007f"#) && shown.contains("ä\u{a0}"),
            "{shown}"
        );
        assert_eq!(serde_json::from_str::<Json>(&shown).expect("JSON"), json!([controls]));
        assert_eq!(inspect(Some("json"), &[json!({"b": 1}), json!({})]).text, "[{\"b\":1},{}]\n");
        assert_eq!(
            inspect(Some("{{.Id}}"), &[image(), image()]).text,
            "sha256:0f7396cbbc2a\nsha256:0f7396cbbc2a\n"
        );
    }

    #[test]
    fn failures() {
        #[track_caller]
        fn fails(format: &str, expect: &str) {
            let inspected = inspect(Some(format), &[image()]);
            assert_eq!(inspected.text, "\n");
            assert_eq!(inspected.failures[0].to_string(), expect);
        }
        fails(
            "{{.NoSuch}}",
            "template parsing error: template: :1:2: executing \"\" at <.NoSuch>: can't evaluate field NoSuch in an image",
        );
        fails(
            "{{.Config.NoSuch}}",
            "template parsing error: template: :1:9: executing \"\" at <.Config.NoSuch>: can't evaluate field NoSuch in an image",
        );
        for stray in ["{{end}}", "{{.Id}}{{end}} more", "{{if .Id}}a{{end}}{{else}}b"] {
            assert!(matches!(Inspect::read(Some(stray)), Err(TemplateFailure::Syntax(_))), "{stray}");
        }
        assert!(matches!(Inspect::read(Some("{{")), Err(TemplateFailure::Syntax(_))));
    }
}
