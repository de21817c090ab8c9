//! `--format`: Go templates over rows and over JSON documents, tables with aligned columns, and JSON.

pub(crate) mod columns;
mod functions;
pub(crate) mod inspect;
pub(crate) mod template;

use self::template::{Documents, Markup, Template, TemplateFailure};
use gotmpl::Value;

/// How a listing is laid out, read from `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Columns under headers; the template's cells are parted by tabs.
    Table(String),
    /// One rendering of the template for each row.
    Rows(String),
}

/// What the bare words of `--format` stand for in one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    /// The template of `table`, and of no `--format` at all.
    pub(crate) table: &'static str,
    /// The template of `raw`.
    pub(crate) raw: &'static str,
}

impl Layout {
    /// Reads the value of `--format`. Escapes `\t` and `\n` stand for themselves, as they do in Docker.
    pub(crate) fn read(format: Option<&str>, defaults: Defaults) -> Self {
        match format.unwrap_or("table") {
            "table" => Self::Table(defaults.table.to_owned()),
            "raw" => Self::Rows(defaults.raw.to_owned()),
            "json" => Self::Rows("{{json .}}".to_owned()),
            other => match other.strip_prefix("table") {
                Some(template) => Self::Table(unescape(template)),
                None => Self::Rows(unescape(other)),
            },
        }
    }

    /// The template, for those who look whether it names a field.
    pub(crate) fn template(&self) -> &str {
        match self {
            Self::Table(template) | Self::Rows(template) => template,
        }
    }

    /// Prints `rows` in this layout.
    ///
    /// # Errors
    /// The template does not parse, or a row does not have what it asks for.
    pub(crate) fn render<R: Row>(&self, rows: &[R]) -> Result<String, TemplateFailure> {
        let template = Template::rows(self.template(), R::SUBJECT)?;
        let looked_at = rows.first().map(|row| looked_at(row, &template)).unwrap_or_default();
        let mut body = String::new();
        for row in rows {
            let mut fields = Fields::only(&looked_at);
            row.fill(&mut fields);
            if matches!(self, Self::Table(_)) {
                fields.found.iter_mut().for_each(|(_, text)| one_cell(text));
            }
            let rendered = match template.render(&record(fields.found)) {
                // The failure tells all the fields that there are.
                Err(TemplateFailure::Field { .. }) => template.render(&record(all_fields(row))),
                rendered => rendered,
            };
            body.push_str(&rendered?);
            body.push('\n');
        }
        match self {
            Self::Rows(_) => Ok(body),
            Self::Table(text) => {
                let headers = R::HEADERS.iter().map(|(name, header)| (*name, (*header).to_owned()));
                let head = Template::headers(text, R::SUBJECT)?.render(&record(headers))?;
                Ok(columns::align(&format!("{head}\n{body}")))
            }
        }
    }
}

/// One line of a listing: the fields that a template may name.
pub(crate) trait Row {
    /// What a row is, for messages: "an image".
    const SUBJECT: &'static str;
    /// The column header of each field that has one.
    const HEADERS: &'static [(&'static str, &'static str)];

    /// Adds every field, in order of names.
    fn fill(&self, fields: &mut Fields<'_>);
}

/// Takes the fields of a row. The text of one that is not wanted is not made.
pub(crate) struct Fields<'a> {
    /// All, if there is no list.
    wanted: Option<&'a [&'static str]>,
    found: Vec<(&'static str, String)>,
}

impl<'a> Fields<'a> {
    fn only(wanted: &'a [&'static str]) -> Self {
        Self { wanted: Some(wanted), found: Vec::with_capacity(wanted.len()) }
    }

    /// Adds a field.
    pub(crate) fn add(&mut self, name: &'static str, text: impl FnOnce() -> String) {
        if self.wanted.is_none_or(|wanted| wanted.contains(&name)) {
            self.found.push((name, text()));
        }
    }
}

/// Every field of a row with its text.
pub(crate) fn all_fields(row: &impl Row) -> Vec<(&'static str, String)> {
    let mut fields = Fields { wanted: None, found: Vec::new() };
    row.fill(&mut fields);
    fields.found
}

/// The fields that a template may look at.
fn looked_at(row: &impl Row, template: &Template) -> Vec<&'static str> {
    let names = all_fields(row).into_iter().map(|(name, _)| name);
    names.filter(|name| template.may_look_at(name)).collect()
}

/// The fields as a template's data.
pub(crate) fn record(fields: impl IntoIterator<Item = (&'static str, String)>) -> Value {
    let map = fields.into_iter().map(|(name, text)| (name.into(), Value::String(text.into()))).collect();
    Value::Map(std::sync::Arc::new(map))
}

/// A whole document as a template's data, rows of rows for instance.
pub(crate) fn render_document(
    format: &str,
    subject: &'static str,
    document: &serde_json::Value,
) -> Result<String, TemplateFailure> {
    let mut documents = Documents::default();
    let value = documents.plain(document);
    let source = if format == "json" { "{{json .}}".to_owned() } else { unescape(format) };
    Template::documents(&source, subject, documents, Markup::Escaped)?.render(&value)
}

fn unescape(template: &str) -> String {
    template.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n")
}

/// Keeps a value inside its cell and away from the terminal's controls: image configs are not ours.
fn one_cell(text: &mut String) {
    if !text.contains(char::is_control) {
        return;
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' | '\n' => out.push(' '),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    *text = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair(&'static str, &'static str);

    impl Row for Pair {
        const SUBJECT: &'static str = "a pair";
        const HEADERS: &'static [(&'static str, &'static str)] = &[("Name", "NAME"), ("Size", "SIZE")];

        fn fill(&self, fields: &mut Fields<'_>) {
            fields.add("Name", || self.0.to_owned());
            fields.add("Size", || self.1.to_owned());
            fields.add("Hidden", || "h".to_owned());
        }
    }

    const DEFAULTS: Defaults =
        Defaults { table: "{{.Name}}\t{{.Size}}", raw: "name: {{.Name}}\nsize: {{.Size}}\n" };

    fn render(format: Option<&str>) -> Result<String, String> {
        let rows = [Pair("multi", "4.42MB"), Pair("a<b", "7B")];
        Layout::read(format, DEFAULTS).render(&rows).map_err(|failure| failure.to_string())
    }

    #[track_caller]
    fn check(format: &str, expect: &str) {
        assert_eq!(render(Some(format)).as_deref(), Ok(expect), "{format}");
    }

    #[test]
    fn layouts() {
        assert_eq!(render(None).unwrap(), "NAME      SIZE\nmulti     4.42MB\na<b       7B\n");
        check("table", "NAME      SIZE\nmulti     4.42MB\na<b       7B\n");
        check(r"table {{.Size}}\t{{.Name}}", "SIZE      NAME\n4.42MB    multi\n7B        a<b\n");
        check("table {{upper .Name}}", "NAME\nMULTI\nA<B\n");
        check("{{.Name}}", "multi\na<b\n");
        check(r"{{.Name}}\n{{.Size}}", "multi\n4.42MB\na<b\n7B\n");
        check("raw", "name: multi\nsize: 4.42MB\n\nname: a<b\nsize: 7B\n\n");
        check(
            "json",
            "{\"Hidden\":\"h\",\"Name\":\"multi\",\"Size\":\"4.42MB\"}\n{\"Hidden\":\"h\",\"Name\":\"a\\u003cb\",\"Size\":\"7B\"}\n",
        );
        check("{{json .Name}}", "\"multi\"\n\"a<b\"\n");
        check("table {{.Hidden}}", "<no value>\nh\nh\n");
    }

    #[test]
    fn functions() {
        #[track_caller]
        fn first(format: &str, expect: &str) {
            let text = render(Some(format)).unwrap_or_else(|message| panic!("{format}: {message}"));
            assert_eq!(text.split("\n").next().unwrap(), expect, "{format}");
        }
        first("{{.Name | upper}}", "MULTI");
        first("{{title .Name}}", "Multi");
        first("{{title \"two words\"}}", "Two Words");
        first("{{lower \"ABC\"}}", "abc");
        first("{{len .Name}}", "5");
        first("{{printf \"%-8s|\" .Name}}", "multi   |");
        first("{{printf \"%q\" .Name}}", "\"multi\"");
        first(
            "{{printf \"%q|%s|%d%%\" (split .Name \"l\") (split .Name \"l\") 5}}",
            "[\"mu\" \"ti\"]|[mu ti]|5%",
        );
        first(
            "{{printf \"%T %8T %T %T|%q\" .Name 1 (split .Name \"l\") 1.5 .Name}}",
            "string      int []string float64|\"multi\"",
        );
        first("{{if eq .Name \"multi\"}}yes{{else}}no{{end}}", "yes");
        first("{{with .Size}}{{.}}{{end}}", "4.42MB");
        first("{{pad .Name 1 2}}|", " multi  |");
        first("{{pad \"\" 1 2}}|", "|");
        first("{{truncate .Name 3}}", "mul");
        first("{{truncate .Name 30}}", "multi");
        first("{{truncate \"é\" 1}}|", "|");
        first("{{split \"a/b/c\" \"/\"}}", "[a b c]");
        first("{{split \"ab\" \"\"}}", "[a b]");
        first("{{join (split \"a/b/c\" \"/\") \"-\"}}", "a-b-c");
        first("{{index (split \"a/b/c\" \"/\") 1}}", "b");
        first("{{slice .Name 1 3}}", "ul");
        first("{{range $i, $v := split \"a,b\" \",\"}}{{$i}}={{$v}};{{end}}", "0=a;1=b;");
        first("{{json .Size}}{{println}}", "\"4.42MB\"");
        first("{{- .Name -}}  x", "multix");
    }

    #[test]
    fn failures() {
        #[track_caller]
        fn fails(format: &str, expect: &str) {
            assert_eq!(render(Some(format)), Err(expect.to_owned()), "{format}");
        }
        fails(
            "{{.Nope}}",
            "template parsing error: template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in a pair",
        );
        fails("{{.Name", "template parsing error: template: :1: unclosed action");
        fails("{{range .}}", "template parsing error: template: :1: unexpected EOF");
        fails(
            "{{if .Name}}a\n{{else}}b{{with .Name}}",
            "template parsing error: template: :2: unexpected EOF",
        );
        fails("{{nope .}}", "template parsing error: template: :1: function \"nope\" not defined");
        fails(
            "{{join .Name}}",
            "template parsing error: template: : executing \"\": wrong number of arguments: join expects 2, got 1",
        );
        fails(
            "{{if .Name}}{{else}}{{(nope .Name).x}}{{end}}",
            "template parsing error: template: :1: function \"nope\" not defined",
        );
        let near = Template::rows("{{.Nmae}}", "a pair").unwrap();
        let failure = near.render(&record(all_fields(&Pair("a", "b")))).unwrap_err();
        assert_eq!(failure.hint().unwrap(), "did you mean .Name? a pair has .Hidden, .Name and .Size");
    }

    #[test]
    fn every_function_is_known() {
        for call in [
            "and 1 1",
            "or 1 1",
            "not 1",
            "len `a`",
            "eq 1 1",
            "ne 1 1",
            "lt 1 2",
            "le 1 2",
            "gt 1 2",
            "ge 1 2",
            "html `<`",
            "js `'`",
            "urlquery `a b`",
            "print 1",
            "println 1",
            "printf `%d` 1",
            "slice `abc` 1",
            "index .Name 0",
            "json .",
        ] {
            let rendered = Template::rows(&format!("{{{{{call}}}}}"), "a pair")
                .and_then(|t| t.render(&record(all_fields(&Pair("a", "b")))));
            assert!(rendered.is_ok(), "{call}: {rendered:?}");
        }
    }

    #[test]
    fn hostile_cells() {
        let layout = Layout::read(None, DEFAULTS);
        let text = layout.render(&[Pair("\x1b[2Jred", "a\tb\nc\u{9b}")]).unwrap();
        assert_eq!(text, "NAME           SIZE\n\\u{1b}[2Jred   a b c\\u{9b}\n");
    }
}
