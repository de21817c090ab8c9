//! A body while it arrives: every byte counted, never waited for longer than the limits say.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use ureq::http::Response;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, LAST_MODIFIED};
use ureq::{Body, BodyReader};

use crate::client::{Limits, failed, strong_tag, text};
use crate::date::parse_date;
use crate::error::{Error, Result};

/// How many bytes of a compressed body are held at once.
const BUFFER: usize = 64 << 10;

/// A body that is being read.
pub struct Download {
    url: String,
    place: String,
    tag: Option<String>,
    modified: Option<i64>,
    length: Option<u64>,
    body: Decoded,
    limits: Limits,
    taken: u64,
    stopped: Arc<AtomicBool>,
}

enum Decoded {
    Plain(Paced),
    Gzip(Box<MultiGzDecoder<BufReader<Paced>>>),
}

/// The bytes as they come, as long as they come fast enough.
struct Paced {
    body: BodyReader<'static>,
    limits: Limits,
    /// How long it was waited since counting began, and what came since.
    waited: Duration,
    bytes: u64,
    /// What came at all: a compressed body need not decompress to anything.
    total: u64,
}

impl Download {
    pub(crate) fn new(
        url: String,
        place: String,
        response: Response<Body>,
        limits: Limits,
        stopped: Arc<AtomicBool>,
    ) -> Result<Self> {
        let headers = response.headers();
        let tag = strong_tag(headers);
        let modified = text(headers, &LAST_MODIFIED).and_then(|date| parse_date(&date));
        let encoding = text(headers, &CONTENT_ENCODING).unwrap_or_default().to_ascii_lowercase();
        let length = text(headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok());
        if length.is_some_and(|length| length > limits.bytes) {
            return Err(Error::TooLarge { url, limit: limits.bytes });
        }
        let body = response.into_body().into_reader();
        let paced = Paced { body, limits, waited: Duration::ZERO, bytes: 0, total: 0 };
        // Nothing else was asked for, and BuildKit undoes gzip alone, too.
        let (body, length) = match encoding.as_str() {
            "gzip" | "x-gzip" => {
                let reader = BufReader::with_capacity(BUFFER, paced);
                (Decoded::Gzip(Box::new(MultiGzDecoder::new(reader))), None)
            }
            _ => (Decoded::Plain(paced), length),
        };
        Ok(Self { url, place, tag, modified, length, body, limits, taken: 0, stopped })
    }

    /// ETag, if it is strong: it tells this version of the resource from all others.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Where redirects ended, with everything that may be secret.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Last-Modified, in seconds since the epoch.
    pub fn modified(&self) -> Option<i64> {
        self.modified
    }

    /// How many bytes will come, if that is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// When the connection ends too early, the server is stalled, more than the limit came, or the client was stopped.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = match &mut self.body {
            Decoded::Plain(body) => body.read(buffer),
            Decoded::Gzip(body) => body.read(buffer),
        };
        // An end that `stop` made looks like any other.
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Error::Stopped);
        }
        let count = read.map_err(|error| self.failed(error))?;
        self.taken += count as u64;
        if self.taken > self.limits.bytes {
            return Err(Error::TooLarge { url: self.url.clone(), limit: self.limits.bytes });
        }
        Ok(count)
    }

    fn failed(&self, error: io::Error) -> Error {
        let url = &self.url;
        if error.get_ref().is_some_and(|inner| inner.is::<Slow>()) {
            return Error::Stalled { url: url.clone(), after: self.limits.stall };
        }
        if error.get_ref().is_some_and(|inner| inner.is::<Large>()) {
            return Error::TooLarge { url: url.clone(), limit: self.limits.bytes };
        }
        let is_decoder = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData);
        match (&self.body, error) {
            (Decoded::Gzip(_), error)
                if is_decoder && error.get_ref().is_none_or(|e| !e.is::<ureq::Error>()) =>
            {
                Error::Encoding { url: url.clone(), source: error }
            }
            (_, error) => failed(ureq::Error::from(error), url, self.limits, &self.stopped),
        }
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("url", &self.url).field("taken", &self.taken).finish_non_exhaustive()
    }
}

/// Too little came in the time that is waited.
#[derive(Debug, thiserror::Error)]
#[error("too slow")]
struct Slow;

/// More came than may.
#[derive(Debug, thiserror::Error)]
#[error("too large")]
struct Large;

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        let count = self.body.read(buffer)?;
        // A process that was stopped itself has not waited.
        self.waited += began.elapsed().min(self.limits.stall);
        self.bytes += count as u64;
        self.total += count as u64;
        if self.total > self.limits.bytes {
            return Err(io::Error::other(Large));
        }
        if self.waited >= self.limits.stall {
            if count > 0 && count < buffer.len() && self.bytes < Limits::STALLED {
                return Err(io::Error::other(Slow));
            }
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        Ok(count)
    }
}
