//! kiln in environments that lack privileges, a file system that holds overlays, or user namespaces.

mod environment;
mod foreground;
mod refused;
mod same;

#[expect(clippy::print_stdout, reason = "skipped tests are said")]
fn say(text: &str) {
    println!("{text}");
}
