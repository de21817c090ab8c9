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
    template.templates().into_iter().filter_map(|name| template.lookup(name)).find_map(in_list)
}

fn in_list(list: &ListNode) -> Option<(String, usize)> {
    list.nodes.iter().find_map(|node| match node {
        Node::List(list) => in_list(list),
        Node::Action(action) => in_pipe(&action.pipe),
        Node::If(branch) | Node::Range(branch) | Node::With(branch) => in_pipe(&branch.pipe)
            .or_else(|| in_list(&branch.body))
            .or_else(|| branch.else_body.as_ref().and_then(in_list)),
        Node::Template(call) => call.pipe.as_ref().and_then(in_pipe),
        Node::Define(define) => in_list(&define.body),
        _ => None,
    })
}

fn in_pipe(pipe: &PipeNode) -> Option<(String, usize)> {
    pipe.commands.iter().flat_map(|command| &command.args).find_map(in_expression)
}

fn in_expression(expression: &Expr) -> Option<(String, usize)> {
    match expression {
        Expr::Identifier(place, name) => {
            (!KNOWN.contains(&name.as_str())).then(|| (name.to_string(), place.line))
        }
        Expr::Pipe(_, pipe) => in_pipe(pipe),
        Expr::Chain(_, inner, _) => in_expression(inner),
        _ => None,
    }
}
