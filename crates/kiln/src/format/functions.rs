//! The functions that a template may call. Go refuses an unknown one when it parses; so do we, even if the call would
//! never be reached.

use gotmpl::parse::{Expr, ListNode, Node, PipeNode};

/// Go's own functions and Docker's.
const KNOWN: [&str; 27] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "join", "js", "json", "le", "len", "lower", "lt", "ne",
    "not", "or", "pad", "print", "printf", "println", "slice", "split", "title", "truncate", "upper",
    "urlquery",
];

/// The name and line of the first function that there is none of.
pub(super) fn unknown(template: &gotmpl::Template) -> Option<(String, usize)> {
    first(template, &|expression| match expression {
        Expr::Identifier(place, name) => {
            (!KNOWN.contains(&name.as_str())).then(|| (name.to_string(), place.line))
        }
        _ => None,
    })
}

/// Whether a member of the outermost value may be looked at: it is named, or the whole value is used.
pub(super) fn may_look_at(template: &gotmpl::Template, member: &str) -> bool {
    let looks = |expression: &Expr| match expression {
        // It may be an inner value's, which costs no more than time.
        Expr::Dot(_) => true,
        Expr::Field(_, names) => names.first().is_none_or(|first| first == member),
        Expr::Variable(_, variable, names) => match names.first() {
            Some(first) => first == member,
            // Others were made of something that was looked at itself.
            None => variable == "$",
        },
        _ => false,
    };
    first(template, &|expression| looks(expression).then_some(())).is_some()
}

/// What is found first in the expressions of a template.
fn first<T>(template: &gotmpl::Template, find: &dyn Fn(&Expr) -> Option<T>) -> Option<T> {
    let lists = template.templates().into_iter().filter_map(|name| template.lookup(name));
    lists.into_iter().find_map(|list| in_list(list, find))
}

fn in_list<T>(list: &ListNode, find: &dyn Fn(&Expr) -> Option<T>) -> Option<T> {
    list.nodes.iter().find_map(|node| match node {
        Node::List(list) => in_list(list, find),
        Node::Action(action) => in_pipe(&action.pipe, find),
        Node::If(branch) | Node::Range(branch) | Node::With(branch) => in_pipe(&branch.pipe, find)
            .or_else(|| in_list(&branch.body, find))
            .or_else(|| branch.else_body.as_ref().and_then(|list| in_list(list, find))),
        Node::Template(call) => call.pipe.as_ref().and_then(|pipe| in_pipe(pipe, find)),
        Node::Define(define) => in_list(&define.body, find),
        _ => None,
    })
}

fn in_pipe<T>(pipe: &PipeNode, find: &dyn Fn(&Expr) -> Option<T>) -> Option<T> {
    let mut expressions = pipe.commands.iter().flat_map(|command| &command.args);
    expressions.find_map(|expression| in_expression(expression, find))
}

fn in_expression<T>(expression: &Expr, find: &dyn Fn(&Expr) -> Option<T>) -> Option<T> {
    find(expression).or_else(|| match expression {
        Expr::Pipe(_, pipe) => in_pipe(pipe, find),
        Expr::Chain(_, inner, _) => in_expression(inner, find),
        _ => None,
    })
}
