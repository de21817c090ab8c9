//! Files that ADD takes from the web.
//!
//! A download is a vertex of its own, keyed by the bytes of the file, whose result is a root with that file alone. So the
//! store keeps it as any layer, and ADD copies it as from any root. The tag that a server gives a file is remembered,
//! so that the next build asks only whether it changed; with `--checksum` nobody is asked.

use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_graph::{Context, Done, Identity, Input, Operation as KeyOperation, Preimage, Stop, Unit, Value};
use kiln_layer::{Kind, LayerWriter, Metadata, RootView, Source};
use kiln_oci::{ChainId, Digest};
use kiln_remote::{Answer, Client, Download, Known};
use kiln_sys::publish::write_over;
use kiln_sys::root::Directory;
use serde::{Deserialize, Serialize};

use crate::checksum::{Checker, Checksum};
use crate::engine::{Engine, Step};
use crate::error::{Error, Result};
use crate::operation::DownloadOperation;
use crate::request::{CacheUse, Executions};

/// What the file is called in the result: what it is called in the image is ADD's to say.
pub(crate) const FILE: &[u8] = b"file";
/// As BuildKit's.
const MODE: u32 = 0o600;
/// The input with the file's bytes.
const CONTENT: &str = "content";
const BUFFER: usize = 128 << 10;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);
/// The most that is read of what is remembered.
const RECORD_LIMIT: u64 = 64 << 10;

/// A file that was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    path: PathBuf,
    size: u64,
    content: Digest,
    /// By the algorithm that was asked for.
    found: Checksum,
    /// Last-Modified, in seconds since the epoch.
    modified: Option<i64>,
}

/// What is remembered of an address: `downloads/<SHA-256 of the address>` (docs/formats.md, section 9).
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    version: u32,
    /// ETag, as the server wrote it. It is a strong one: others, and dates, do not tell all versions apart.
    tag: String,
    /// SHA-256 of the address where redirects ended: the tag is that of the file there.
    place: String,
    /// SHA-256 of the file.
    content: String,
    /// Last-Modified, in seconds since the epoch.
    modified: Option<i64>,
}

const VERSION: u32 = 2;

impl Engine<'_> {
    /// The key of a download. Without a checksum the server is asked, and what it sends is kept for the execution.
    pub(crate) fn download_identity(
        &self,
        operation: &DownloadOperation,
        key: KeyOperation,
        context: &Context<'_>,
    ) -> std::result::Result<Identity, Stop<Error>> {
        if let Some(checksum) = &operation.checksum {
            let input = match checksum {
                Checksum::Sha256(content) => content_input(*content),
                other => {
                    let selector = other.to_string();
                    Input { name: CONTENT.to_owned(), digest: Digest::of(selector.as_bytes()), selector }
                }
            };
            return Ok(Identity::Known(Preimage { operation: key, inputs: vec![input] }));
        }
        let remembered = match self.request.cache {
            CacheUse::Records => self.remembered(&operation.url),
            CacheUse::Nothing => None,
        };
        // A server may take its time, and collections wait for who has no lease.
        self.lease()?;
        let refused = self.request.executions == Executions::Refused;
        if refused && remembered.is_none() {
            return Err(Stop::Failed(Error::NeedsFiles));
        }
        let answer = self.ask(&operation.url, remembered.as_ref(), context)?;
        let (content, modified) = match (answer, remembered) {
            (Answer::Unchanged, Some(remembered)) => (remembered.content(), remembered.modified),
            (Answer::Body(_), _) if refused => return Err(Stop::Failed(Error::NeedsFiles)),
            (Answer::Body(download), _) => {
                let fetched = self.fetch(operation, *download, context)?;
                let known = (Some(fetched.content), fetched.modified);
                self.fetched.lock().unwrap_or_else(|e| e.into_inner()).insert(context.vertex(), fetched);
                known
            }
            (Answer::Unchanged, None) => (None, None),
        };
        let content = content.unwrap_or_default();
        Ok(Identity::Known(preimage(key, content, modified)))
    }

    /// Makes the root with the file, which is fetched unless that was done for the key.
    pub(crate) fn download(
        &self,
        operation: &DownloadOperation,
        expected: &Preimage,
        context: &Context<'_>,
    ) -> std::result::Result<Done<Step>, Stop<Error>> {
        let kept = self.fetched.lock().unwrap_or_else(|e| e.into_inner()).remove(&context.vertex());
        let fetched = match kept {
            Some(fetched) => fetched,
            None => match self.ask(&operation.url, None, context)? {
                Answer::Body(download) => self.fetch(operation, *download, context)?,
                Answer::Unchanged => {
                    return Err(Stop::Failed(Error::Changed(kiln_remote::shown(&operation.url))));
                }
            },
        };
        if let Some(checksum) = operation.checksum.as_ref().filter(|checksum| **checksum != fetched.found) {
            return Err(Stop::Failed(Error::Checksum {
                url: kiln_remote::shown(&operation.url),
                expected: checksum.to_string(),
                found: fetched.found.to_string(),
            }));
        }
        let layer = self.file_layer(&fetched, context)?;
        let result = self.made(ChainId::SCRATCH, layer);
        // It may have changed since the key was made.
        let preimage = match operation.checksum {
            Some(_) => None,
            None => Some(preimage(expected.operation.clone(), fetched.content, fetched.modified)),
        };
        Ok(Done { result, preimage })
    }

    fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::new(&self.request.remote)?;
        Ok(self.client.get_or_init(|| client))
    }

    fn ask(
        &self,
        url: &str,
        remembered: Option<&Remembered>,
        context: &Context<'_>,
    ) -> std::result::Result<Answer, Stop<Error>> {
        let client = self.client()?;
        let _stopping = stop_with(client, context);
        let is_at = |place: &str| remembered.is_some_and(|remembered| remembered.place == name(place));
        let known = remembered.map(|remembered| Known { tag: &remembered.tag, is_at: &is_at });
        client.get(url, known).map_err(stopped)
    }

    fn fetch(
        &self,
        operation: &DownloadOperation,
        mut download: Download,
        context: &Context<'_>,
    ) -> std::result::Result<Fetched, Stop<Error>> {
        let _stopping = stop_with(self.client()?, context);
        let path = self.lease()?.fresh_path("download");
        let failed = |action: &'static str| {
            let path = path.display().to_string();
            move |source| Error::File { action, path, source }
        };
        let mut file = fs_err::File::create_new(&path).map_err(failed("make"))?;
        let mut checker = Checker::new(operation.checksum.as_ref());
        let mut buffer = vec![0; BUFFER];
        let mut size = 0;
        let mut told = Instant::now();
        loop {
            let count = download.read(&mut buffer).map_err(stopped)?;
            if count == 0 {
                break;
            }
            checker.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(failed("write"))?;
            size += count as u64;
            if told.elapsed() > TELL {
                context.progress(size, download.length(), Unit::Bytes);
                told = Instant::now();
            }
        }
        let (content, found) = checker.finish();
        let fetched = Fetched { path, size, content, found, modified: download.modified() };
        self.remember(&operation.url, &download, &fetched);
        Ok(fetched)
    }

    fn file_layer(&self, fetched: &Fetched, context: &Context<'_>) -> Result<kiln_oci::DiffId> {
        let mut metadata = Metadata { size: fetched.size, ..Metadata::new(Kind::Regular, MODE) };
        metadata.modified.seconds = fetched.modified.unwrap_or_default();
        let mut writer = LayerWriter::new();
        writer.add(FILE, metadata, Source::Open(Box::new(|| open(&fetched.path))))?;
        let layer = self.write_layer(writer, &RootView::default(), context)?;
        let written = layer.index.find(FILE)?.and_then(|entry| entry.content());
        if written != Some(fetched.content) {
            return Err(Error::Changed(fetched.path.display().to_string()));
        }
        let published = self.store.publish_layer(self.lease()?, ChainId::SCRATCH, layer)?;
        // What stays goes with the lease.
        let _ = fs_err::remove_file(&fetched.path);
        Ok(published)
    }

    fn remembered(&self, url: &str) -> Option<Remembered> {
        let directory = Directory::open(&self.store.root().join(DIRECTORY)).ok()?;
        let file = directory.open_file(name(url)).ok()?;
        let mut bytes = Vec::new();
        file.take(RECORD_LIMIT).read_to_end(&mut bytes).ok()?;
        let remembered: Remembered = serde_json::from_slice(&bytes).ok()?;
        let is_whole = remembered.version == VERSION && remembered.content().is_some();
        is_whole.then_some(remembered)
    }

    /// Remembers what tells the file from later ones. Losing it loses only speed.
    fn remember(&self, url: &str, download: &Download, fetched: &Fetched) {
        let Some(tag) = download.tag() else { return };
        let remembered = Remembered {
            version: VERSION,
            tag: tag.to_owned(),
            place: name(download.place()),
            content: fetched.content.to_string(),
            modified: fetched.modified,
        };
        let Ok(bytes) = serde_json::to_vec(&remembered) else { return };
        let directory = Directory::open(&self.store.root().join(DIRECTORY));
        let _ = directory.and_then(|directory| write_over(&directory, OsStr::new(&name(url)), &bytes, 0o600));
    }
}

/// In the store.
const DIRECTORY: &str = "downloads";

/// The address itself may hold a password or token.
fn name(url: &str) -> String {
    Digest::of(url.as_bytes()).to_string().trim_start_matches("sha256:").to_owned()
}

impl Remembered {
    fn content(&self) -> Option<Digest> {
        match Checksum::parse(&self.content) {
            Ok(Checksum::Sha256(content)) => Some(content),
            _ => None,
        }
    }
}

fn content_input(content: Digest) -> Input {
    Input { name: CONTENT.to_owned(), selector: String::new(), digest: content }
}

fn preimage(key: KeyOperation, content: Digest, modified: Option<i64>) -> Preimage {
    Preimage { operation: key.with("modified", Value::from(modified)), inputs: vec![content_input(content)] }
}

/// What is canceled stops the whole client: a build that is canceled needs nothing more.
fn stop_with(client: &Client, context: &Context<'_>) -> kiln_graph::OnCancel {
    let client = client.clone();
    context.cancel().on_cancel(move || client.stop())
}

fn stopped(error: kiln_remote::Error) -> Stop<Error> {
    match error {
        kiln_remote::Error::Stopped => Stop::Canceled,
        error => Stop::Failed(error.into()),
    }
}

pub(crate) fn open<'w>(path: &Path) -> kiln_layer::Result<Box<dyn Read + 'w>> {
    let file = fs_err::File::open(path).map_err(kiln_layer::Error::Read)?;
    Ok(Box::new(file))
}
