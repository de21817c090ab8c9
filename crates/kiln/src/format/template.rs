//! Go templates with the functions that Docker's command line adds to Go's own.

use std::collections::HashMap;
use std::sync::Arc;

use gotmpl::{MissingKey, TemplateError, Value};
use serde_json::Value as Json;
use thiserror::Error;

use crate::failure::{enumerate, nearest};

/// Why a template gave nothing.
#[derive(Debug, Error)]
pub(crate) enum TemplateFailure {
    /// The template is not one.
    #[error("template parsing error: {0}")]
    Syntax(String),
    /// The data has no such field.
    #[error(
        "template parsing error: template: :{line}:{column}: executing \"\" at <{expression}>: \
         can't evaluate field {field} in {subject}"
    )]
    Field {
        /// What was looked at, "an image".
        subject: &'static str,
        /// The chain as written, up to the field that is missing.
        expression: String,
        /// The field that is missing.
        field: String,
        /// Where the field is named, from 1.
        line: usize,
        /// Bytes before it in its line.
        column: usize,
        /// The fields of the outermost value.
        known: Vec<String>,
    },
    /// A function did not accept what it was given.
    #[error("template parsing error: template: : executing \"\": {0}")]
    Run(String),
}

impl TemplateFailure {
    /// What to write instead.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Field { subject, field, known, expression, .. } if expression.matches('.').count() == 1 => {
                let dotted: Vec<String> = known.iter().map(|name| format!(".{name}")).collect();
                let list = format!("{subject} has {}", enumerate(&dotted));
                Some(match nearest(field, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean .{near}? {list}"),
                    None => list,
                })
            }
            _ => None,
        }
    }
}

/// Whether `json` writes `<`, `>` and `&` of objects as escapes. Docker does for rows and does not for documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Markup {
    Escaped,
    Plain,
}

/// A parsed template and what it may be asked about.
pub(crate) struct Template {
    strict: gotmpl::Template,
    lenient: gotmpl::Template,
    source: String,
    subject: &'static str,
}

impl Template {
    /// A template over rows.
    pub(crate) fn rows(source: &str, subject: &'static str) -> Result<Self, TemplateFailure> {
        Self::build(source, subject, Functions::Values(Documents::default(), Markup::Escaped))
    }

    /// The same template over column headers, which the functions that change text leave alone.
    pub(crate) fn headers(source: &str, subject: &'static str) -> Result<Self, TemplateFailure> {
        let mut template = Self::build(source, subject, Functions::Headers)?;
        template.strict = template.lenient.clone();
        Ok(template)
    }

    /// A template over values that `documents` made.
    pub(crate) fn documents(
        source: &str,
        subject: &'static str,
        documents: Documents,
        markup: Markup,
    ) -> Result<Self, TemplateFailure> {
        Self::build(source, subject, Functions::Values(documents, markup))
    }

    fn build(source: &str, subject: &'static str, functions: Functions) -> Result<Self, TemplateFailure> {
        // Named, because only templates with a name can be looked into.
        let empty = gotmpl::Template::new("--format");
        let parse = |template: gotmpl::Template, source: &str| {
            template.parse(source).map_err(|error| TemplateFailure::Syntax(syntax(&error)))
        };
        let parsed = parse(functions.register(empty.clone()), source)?;
        if let Some((name, line)) = super::functions::unknown(&parsed) {
            return Err(TemplateFailure::Syntax(format!("template: :{line}: function {name:?} not defined")));
        }
        // The parser takes a stray {{end}} or {{else}} for the end of everything, and the end of everything for an {{end}}:
        // what follows a stray one would be lost.
        let reaches = |text: String| {
            let marked = parse(empty.clone(), &format!("{text}{{{{marker}}}}"))?;
            Ok(super::functions::unknown(&marked).is_some())
        };
        if !reaches(source.to_owned())? {
            return Err(TemplateFailure::Syntax("template: :1: unexpected {{end}} or {{else}}".to_owned()));
        }
        if reaches(format!("{source}{{{{end}}}}"))? {
            let line = source.matches('\n').count() + 1;
            return Err(TemplateFailure::Syntax(format!("template: :{line}: unexpected EOF")));
        }
        let strict = parsed.clone().missing_key(MissingKey::Error);
        Ok(Self { strict, lenient: parsed, source: source.to_owned(), subject })
    }

    /// Whether a member of the data may be looked at.
    pub(crate) fn may_look_at(&self, member: &str) -> bool {
        super::functions::may_look_at(&self.lenient, member)
    }

    /// Applies the template to `data`.
    pub(crate) fn render(&self, data: &Value) -> Result<String, TemplateFailure> {
        match self.strict.execute_to_string(data) {
            Ok(text) => Ok(text),
            Err(TemplateError::MissingKey { key }) => {
                let place = Place::find(&self.source, &key);
                if place.in_free_map() {
                    return self.lenient.execute_to_string(data).map_err(|error| Self::failed(&error));
                }
                let known = match data {
                    Value::Map(map) => map.keys().map(|name| name.to_string()).collect(),
                    _ => Vec::new(),
                };
                let Place { expression, line, column } = place;
                Err(TemplateFailure::Field {
                    subject: self.subject,
                    expression,
                    field: key,
                    line,
                    column,
                    known,
                })
            }
            Err(error) => Err(Self::failed(&error)),
        }
    }

    fn failed(error: &TemplateError) -> TemplateFailure {
        let text = error.to_string();
        TemplateFailure::Run(text.strip_prefix("execution error: ").unwrap_or(&text).to_owned())
    }
}

/// The message in Go's words.
fn syntax(error: &TemplateError) -> String {
    match error {
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            format!("template: :{line}: {message}")
        }
        other => other.to_string(),
    }
}

/// Where a template names a field.
struct Place {
    expression: String,
    line: usize,
    column: usize,
}

impl Place {
    fn find(source: &str, field: &str) -> Self {
        let dotted = format!(".{field}");
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let at = source
            .match_indices(&dotted)
            .map(|(at, _)| at)
            .find(|at| !source[at + dotted.len()..].starts_with(is_name))
            .unwrap_or(0);
        let start = source[..at].trim_end_matches(|c| is_name(c) || c == '.' || c == '$').len();
        let before = &source[..at];
        let end = (at + dotted.len()).min(source.len());
        Self {
            expression: source.get(start..end).unwrap_or(&dotted).to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.len() - before.rfind('\n').map_or(0, |newline| newline + 1),
        }
    }

    /// Whether the field belongs to a map with free keys, of which any may be missing: Go gives `<no value>`.
    fn in_free_map(&self) -> bool {
        let owner = self.expression.rsplit('.').nth(1).unwrap_or_default();
        matches!(owner, "Labels" | "Data" | "ExposedPorts" | "Volumes")
    }
}

/// The JSON behind template values where the two differ: the order of members, `null`, times.
///
/// Values are recognised by address, so they stay here as long as the table does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Documents {
    sources: HashMap<usize, (Value, Json)>,
}

impl Documents {
    /// `document` as template data; objects remember the order of their members.
    pub(crate) fn plain(&mut self, document: &Json) -> Value {
        match document {
            Json::Object(members) => {
                let map =
                    members.iter().map(|(name, member)| (name.as_str().into(), self.plain(member))).collect();
                self.remember(Value::Map(Arc::new(map)), document)
            }
            Json::Array(elements) => {
                Value::List(elements.iter().map(|element| self.plain(element)).collect())
            }
            scalar => Self::scalar(scalar),
        }
    }

    pub(crate) fn scalar(document: &Json) -> Value {
        match document {
            Json::Bool(flag) => Value::Bool(*flag),
            Json::String(text) => Value::String(text.as_str().into()),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Value::Int(number),
                (None, Some(number)) => Value::Uint(number),
                (None, None) => Value::Float(number.as_f64().unwrap_or_default()),
            },
            _ => Value::Nil,
        }
    }

    /// Lets `json` of `value` give `source`.
    pub(crate) fn remember(&mut self, value: Value, source: &Json) -> Value {
        if let Some(address) = address(&value) {
            self.sources.insert(address, (value.clone(), source.clone()));
        }
        value
    }

    fn json(&self, value: &Value) -> Json {
        if let Some((_, source)) = address(value).and_then(|address| self.sources.get(&address)) {
            return source.clone();
        }
        match value {
            Value::Bool(flag) => Json::Bool(*flag),
            Value::Int(number) => (*number).into(),
            Value::Uint(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::String(text) => text.as_ref().into(),
            Value::List(elements) => elements.iter().map(|element| self.json(element)).collect(),
            Value::Map(members) => Json::Object(
                members.iter().map(|(name, member)| (name.to_string(), self.json(member))).collect(),
            ),
            Value::Nil | Value::Function(_) => Json::Null,
        }
    }
}

fn address(value: &Value) -> Option<usize> {
    match value {
        Value::Map(map) => Some(Arc::as_ptr(map) as usize),
        Value::List(list) => Some(Arc::as_ptr(list).cast::<()>() as usize),
        Value::String(text) => Some(Arc::as_ptr(text).cast::<()>() as usize),
        _ => None,
    }
}

type Outcome = Result<Value, TemplateError>;

/// The functions besides Go's own.
enum Functions {
    Values(Documents, Markup),
    Headers,
}

impl Functions {
    fn register(self, template: gotmpl::Template) -> gotmpl::Template {
        let template = template.func("pad", pad).func("index", index).func("printf", printf);
        match self {
            Self::Values(documents, markup) => template
                .func("json", move |arguments| {
                    let [value] = exactly::<1>("json", arguments)?;
                    let text = documents.json(value).to_string();
                    let object = matches!(value, Value::Map(_) | Value::List(_));
                    Ok(text_value(if object && markup == Markup::Escaped {
                        escape_markup(&text)
                    } else {
                        text
                    }))
                })
                .func("split", split)
                .func("join", join)
                .func("title", |arguments| changed("title", arguments, title))
                .func("lower", |arguments| changed("lower", arguments, str::to_lowercase))
                .func("upper", |arguments| changed("upper", arguments, str::to_uppercase))
                .func("truncate", truncate),
            Self::Headers => ["json", "split", "join", "title", "lower", "upper", "truncate"].iter().fold(
                template,
                |template, name| {
                    template.func(name, |arguments| Ok(arguments.first().cloned().unwrap_or(Value::Nil)))
                },
            ),
        }
    }
}

fn text_value(text: String) -> Value {
    Value::String(text.into())
}

fn exactly<'a, const N: usize>(name: &str, arguments: &'a [Value]) -> Result<&'a [Value; N], TemplateError> {
    arguments.try_into().map_err(|_| TemplateError::ArgCount {
        name: name.to_owned(),
        expected: N,
        got: arguments.len(),
    })
}

fn text(value: &Value) -> Result<&str, TemplateError> {
    value.as_str().ok_or(TemplateError::TypeMismatch { expected: "string", got: value.type_name() })
}

fn length(value: &Value) -> Result<usize, TemplateError> {
    let number =
        value.as_int().ok_or(TemplateError::TypeMismatch { expected: "int", got: value.type_name() })?;
    usize::try_from(number).map_err(|_| TemplateError::Exec(format!("{number} is negative")))
}

fn changed(name: &str, arguments: &[Value], change: impl Fn(&str) -> String) -> Outcome {
    let [value] = exactly::<1>(name, arguments)?;
    Ok(text_value(change(text(value)?)))
}

/// Upper case for the first letter of each word.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.push(c),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphanumeric() || c == '_' || c == '\'';
    }
    out
}

fn pad(arguments: &[Value]) -> Outcome {
    let [value, before, after] = exactly::<3>("pad", arguments)?;
    let (text, before, after) = (text(value)?, length(before)?, length(after)?);
    if before.max(after) > 1 << 16 {
        return Err(TemplateError::Exec("pad: more than 65536 spaces".to_owned()));
    }
    Ok(if text.is_empty() {
        value.clone()
    } else {
        text_value(format!("{}{text}{}", " ".repeat(before), " ".repeat(after)))
    })
}

/// Cut to a number of bytes, at the boundary of a character before it.
fn truncate(arguments: &[Value]) -> Outcome {
    let [value, limit] = exactly::<2>("truncate", arguments)?;
    let text = text(value)?;
    let limit = length(limit)?;
    let kept = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= limit).map(|(_, c)| c).collect();
    Ok(text_value(kept))
}

fn split(arguments: &[Value]) -> Outcome {
    let [value, separator] = exactly::<2>("split", arguments)?;
    let (text, separator) = (text(value)?, text(separator)?);
    let parts: Vec<Value> = match separator {
        "" => text.chars().map(|c| text_value(c.to_string())).collect(),
        _ => text.split(separator).map(|part| text_value(part.to_owned())).collect(),
    };
    Ok(Value::List(parts.into()))
}

fn join(arguments: &[Value]) -> Outcome {
    let [value, separator] = exactly::<2>("join", arguments)?;
    let mut parts: Vec<String> = match value {
        Value::List(elements) => elements.iter().map(ToString::to_string).collect(),
        Value::Map(members) => members.values().map(ToString::to_string).collect(),
        Value::Nil => Vec::new(),
        other => return Err(TemplateError::TypeMismatch { expected: "list", got: other.type_name() }),
    };
    if matches!(value, Value::Map(_)) {
        parts.sort();
    }
    Ok(text_value(parts.join(text(separator)?)))
}

/// Go's `index`, but for one thing: a key that a map of texts does not have gives an empty text, which is what Go
/// gives for labels.
fn index(arguments: &[Value]) -> Outcome {
    let (first, keys) = arguments.split_first().ok_or_else(|| TemplateError::ArgCount {
        name: "index".to_owned(),
        expected: 1,
        got: 0,
    })?;
    keys.iter().try_fold(first.clone(), |value, key| match (&value, key) {
        (Value::Map(map), Value::String(name))
            if !map.contains_key(name) && map.values().all(|member| matches!(member, Value::String(_))) =>
        {
            Ok(text_value(String::new()))
        }
        _ => value.index(key),
    })
}

/// Go's `printf`, which prints a list of texts through `%s` and `%q` too, and knows the verb `%T`.
fn printf(arguments: &[Value]) -> Outcome {
    let mut arguments = arguments.to_vec();
    if let Some((Value::String(format), values)) = arguments.split_first_mut() {
        *format = with_plain_verbs(format, values)?.into();
    }
    let plain = |value: &Value| match value {
        Value::List(_) | Value::Map(_) => text_value(value.to_string()),
        other => other.clone(),
    };
    let values = Value::List(arguments.iter().map(plain).collect());
    let words: String = (0..arguments.len()).map(|place| format!(" (index . {place})")).collect();
    let printed =
        gotmpl::Template::new("").parse(&format!("{{{{printf{words}}}}}"))?.execute_to_string(&values)?;
    Ok(text_value(printed))
}

/// The format with `%s` in place of `%T`, and of `%q` of a list, and in `values` what they print. What stands behind a `*`
/// or an index is left as it is.
fn with_plain_verbs(format: &str, values: &mut [Value]) -> Result<String, TemplateError> {
    let (mut out, mut rest, mut place) = (String::with_capacity(format.len()), format, 0);
    while let Some(at) = rest.find('%') {
        let is_flag = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '#' | ' ' | '.');
        let Some(verb) = rest[at + 1..].find(|c| !is_flag(c)).map(|length| at + 1 + length) else { break };
        let letter = rest[verb..].chars().next().unwrap_or_default();
        if matches!(letter, '*' | '[') {
            break;
        }
        let printed = match (letter, values.get(place)) {
            ('T', Some(value)) => Some(text_value(go_type(value).to_owned())),
            ('q', Some(Value::List(elements))) => Some(quoted(elements)?),
            _ => None,
        };
        out.push_str(&rest[..verb]);
        out.push(if printed.is_some() { 's' } else { letter });
        if let Some(printed) = printed {
            values[place] = printed;
        }
        place += usize::from(letter != '%');
        rest = &rest[verb + letter.len_utf8()..];
    }
    Ok(out + rest)
}

fn quoted(elements: &[Value]) -> Outcome {
    let format = text_value("%q".to_owned());
    let texts: Vec<String> = elements
        .iter()
        .map(|element| printf(&[format.clone(), element.clone()]).map(|text| text.to_string()))
        .collect::<Result<_, _>>()?;
    Ok(text_value(format!("[{}]", texts.join(" "))))
}

/// Go's name for the type of what Docker's documents hold.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Nil => "<nil>",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Uint(_) => "int",
        Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::List(_) => "[]string",
        Value::Map(_) => "map[string]interface {}",
        Value::Function(_) => "func",
    }
}

fn escape_markup(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            c => out.push(c),
        }
    }
    out
}
