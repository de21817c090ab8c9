//! Arguments that exist without an ARG.

/// Proxy variables. They reach RUN when given as build arguments, without ARG, and leave no trace in
/// history, config or key.
pub const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Arguments that ARG may declare but that never enter the environment.
pub const NON_ENVIRONMENT_ARGS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Whether a build argument is a proxy variable. BuildKit compares without regard to case.
#[must_use]
pub fn is_proxy_arg(name: &str) -> bool {
    PROXY_ARGS.iter().any(|known| known.eq_ignore_ascii_case(name))
}
