//! Why nothing came over the wire. Addresses in messages carry no password.

use std::time::Duration;

/// A failed request or download.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that no request can be made for.
    #[error("{url:?} is no address to download from: {problem}")]
    Address {
        /// As given.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The address of a proxy.
    #[error("{proxy:?} is no address of a proxy: expected http://host:port")]
    Proxy {
        /// Without its password.
        proxy: String,
        /// What it is a proxy for: http or https.
        scheme: &'static str,
    },
    /// The file with certificates.
    #[error("cannot read certificates")]
    Roots(#[source] std::io::Error),
    /// The file with certificates holds none.
    #[error("no certificate in {path}")]
    NoRoots {
        /// Which file.
        path: String,
    },
    /// An https address, and nothing to check the server's certificate against.
    #[error("cannot check the certificate of {url}: no CA bundle is known")]
    NoBundle {
        /// What was asked for.
        url: String,
    },
    /// The server said no.
    #[error("{url}: invalid response status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The server's answer.
        status: u16,
    },
    /// A server sends on and on.
    #[error("{url}: more than {limit} redirects")]
    Redirects {
        /// What was asked for first.
        url: String,
        /// As many were followed.
        limit: u32,
    },
    /// A redirect that is not followed.
    #[error("{url}: refused to be sent on to {target}: {problem}")]
    Redirect {
        /// Who sent on.
        url: String,
        /// Where to.
        target: String,
        /// Why not.
        problem: &'static str,
    },
    /// Nothing came for too long, or next to nothing.
    #[error("{url}: the server sent nothing for {} seconds", after.as_secs())]
    Stalled {
        /// What was asked for.
        url: String,
        /// How long was waited.
        after: Duration,
    },
    /// More came than may.
    #[error("{url}: larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// In bytes.
        limit: u64,
    },
    /// The server compressed the answer, and did it badly.
    #[error("{url}: the answer cannot be decompressed")]
    Encoding {
        /// What was asked for.
        url: String,
        /// The decoder's answer.
        source: std::io::Error,
    },
    /// [`crate::Client::stop`] was called.
    #[error("canceled")]
    Stopped,
    /// The connection.
    #[error("cannot download {url}")]
    Transport {
        /// What was asked for.
        url: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
