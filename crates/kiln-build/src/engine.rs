//! What the graph asks: keys, records, and doing operations.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kiln_graph::{
    Cancel, Claim, Context, Done, Earlier, Entry, Executor, Given, Identity, Input, Key, Preimage, Record,
    Records, Stop, VertexId,
};
use kiln_oci::{ChainId, DiffId, Digest};
use kiln_remote::Client;
use kiln_runtime::{Isolation, Launcher};
use kiln_store::{CacheRecord, FirstMade, LateLease, Lease, RecordInput, RootWay, Store};
use kiln_sys::root::Directory;

use crate::context::{BeforeReading, BuildContext};
use crate::download::Fetched;
use crate::error::{Error, Result};
use crate::git::Commit;
use crate::operation::{ENVIRONMENT, KeyedEnvironment, MountSource, Operation, ROOT};
use crate::request::{BuildRequest, ContextKind, Executions};
use crate::select::Selection;
use crate::transfer::Form;

/// So few files are written sooner than their tar is mounted.
const FEW_ENTRIES: usize = 16;

/// How many records a miss is compared with.
const CANDIDATES: u32 = 32;
/// How many bytes of other operations' texts a miss is compared with.
const MOST_COMPARED: usize = 1 << 20;

/// What an operation gives: a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The root.
    pub(crate) chain: ChainId,
    /// The layer that the operation made.
    pub(crate) layer: Option<DiffId>,
    /// When that was first made, nanoseconds since the epoch.
    pub(crate) created: i64,
}

/// Everything that operations need. One for each build.
pub(crate) struct Engine<'a> {
    pub(crate) store: &'a Store,
    /// Begins when something is to be made.
    pub(crate) lease: &'a LateLease<'a>,
    pub(crate) request: &'a BuildRequest,
    pub(crate) platform: String,
    /// What keys say of RUNs' variables.
    pub(crate) environments: KeyedEnvironment,
    /// Vertices whose layers a RUN will stand on.
    pub(crate) stood_on: HashSet<VertexId>,
    /// The context, opened when it is first looked at.
    pub(crate) opened: OnceLock<BuildContext<'a>>,
    /// Begins the lease, since collections wait for who has none, and to read the context's files may take long.
    pub(crate) before_reading: BeforeReading<'a>,
    /// Tells something, and what was told.
    pub(crate) note: &'a (dyn Fn(&str) + Sync),
    pub(crate) noted: Mutex<HashSet<String>>,
    /// Set by an interrupt and by the first step that fails: ends what goes on.
    pub(crate) cancel: Cancel,
    /// Tells that something is about to be made.
    pub(crate) works: &'a (dyn Fn() + Sync),
    /// Whether the kernel has refused an overlay.
    pub(crate) overlays_refused: AtomicBool,
    /// What was selected for a key, kept for the copying that may follow.
    pub(crate) selections: Mutex<HashMap<VertexId, Selection>>,
    /// What was fetched for a key.
    pub(crate) fetched: Mutex<HashMap<VertexId, Fetched>>,
    /// What repositories said for keys.
    pub(crate) commits: Mutex<HashMap<VertexId, Commit>>,
    /// Made when it is first needed.
    pub(crate) client: OnceLock<Client>,
    /// Starts every RUN.
    pub(crate) launcher: Launcher,
}

impl<'a> Engine<'a> {
    /// One that has made nothing yet and tells nobody anything.
    pub(crate) fn new(store: &'a Store, lease: &'a LateLease<'a>, request: &'a BuildRequest) -> Self {
        Self {
            store,
            lease,
            request,
            platform: request.platform.to_string(),
            environments: KeyedEnvironment::default(),
            stood_on: HashSet::new(),
            opened: OnceLock::new(),
            before_reading: &|| Ok(()),
            note: &|_: &str| {},
            cancel: Cancel::new(),
            works: &|| {},
            noted: Mutex::default(),
            overlays_refused: AtomicBool::new(false),
            selections: Mutex::default(),
            fetched: Mutex::default(),
            commits: Mutex::default(),
            client: OnceLock::new(),
            launcher: Launcher::new(),
        }
    }
}

impl Engine<'_> {
    /// The build context.
    pub(crate) fn context(&self) -> Result<&BuildContext<'_>> {
        if let Some(context) = self.opened.get() {
            return Ok(context);
        }
        let (caches, modes) = match &self.request.context_kind {
            ContextKind::Lasting => {
                (Directory::open(&self.store.root().join("context")).ok(), Arc::default())
            }
            ContextKind::Passing { modes } => (None, Arc::clone(modes)),
        };
        let context = BuildContext::open(&self.request.context, &self.request.ignore, caches)?.with(modes);
        if !context.is_remembered() {
            // All of it will be read; where nothing is ever remembered, to look at it may take long, too.
            self.lease()?;
        }
        let context = context.calling(self.before_reading).ending_with(&self.cancel);
        Ok(self.opened.get_or_init(|| context))
    }

    /// Tells something that holds for the whole build.
    pub(crate) fn note_once(&self, text: &str) {
        if self.noted.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            (self.note)(text);
        }
    }

    /// How roots of commands are put together.
    pub(crate) fn root_way(&self) -> RootWay {
        let copied = self.request.executions == Executions::Allowed(Isolation::Chroot)
            || self.overlays_refused.load(Ordering::Relaxed)
            || self.store.snapshots_refused().is_some();
        if copied { RootWay::Copy } else { RootWay::Overlay }
    }

    /// In which form a vertex's layer of so many entries is wanted.
    pub(crate) fn form(&self, vertex: VertexId, entries: usize) -> Form {
        let mounted = entries > FEW_ENTRIES && self.store.mounts_tars();
        let stacked = self.stood_on.contains(&vertex) && self.root_way() == RootWay::Overlay;
        if stacked && !mounted { Form::Snapshot } else { Form::Tar }
    }

    /// The layers of a chain, from the bottom to the top.
    pub(crate) fn layers(&self, chain: ChainId) -> Result<Vec<DiffId>> {
        let layers = self.store.chain_layers(chain)?;
        Ok(layers.ok_or(kiln_store::Error::NoLayer(DiffId(chain.0)))?.to_vec())
    }

    /// The build's lease, which begins now if it has not.
    pub(crate) fn lease(&self) -> Result<&Lease> {
        (self.works)();
        Ok(self.lease.begin()?)
    }

    /// An empty directory that goes with the build.
    pub(crate) fn fresh_directory(&self, name: &str) -> Result<PathBuf> {
        Ok(self.lease()?.fresh_directory(name)?)
    }
}

impl Records for Engine<'_> {
    type Result = Step;
    type Error = Error;
    type Guard = kiln_store::Claim;

    fn lookup(&self, key: &Key) -> Result<Option<Record<Step>>> {
        let found = self.lease.cached(&Digest::from_bytes(*key.as_bytes()))?;
        Ok(found.map(|cached| Record {
            result: Step { chain: cached.result, layer: cached.layer, created: cached.created },
            present: cached.present,
            duration: cached.wall_time,
        }))
    }

    fn candidates(&self, preimage: &Preimage) -> Result<Vec<Preimage>> {
        let digest = preimage.operation.digest();
        let mut compared = 0;
        let mut candidates = Vec::new();
        for record in self.store.nearest_records(&digest, preimage.operation.name(), CANDIDATES)? {
            let inputs = record.inputs.into_iter();
            let inputs: Vec<_> = inputs
                .map(|input| Input { name: input.name, selector: input.selector, digest: input.digest })
                .collect();
            let operation = if record.operation == digest {
                Some(preimage.operation.clone())
            } else if inputs == preimage.inputs && compared < MOST_COMPARED {
                let text = self.store.operation(&record.operation)?.unwrap_or_default();
                compared += text.len();
                String::from_utf8(text).ok().and_then(|text| kiln_graph::Operation::parse(&text).ok())
            } else {
                None
            };
            candidates.extend(operation.map(|operation| Preimage { operation, inputs }));
        }
        Ok(candidates)
    }

    fn claim(&self, key: &Key) -> Result<Claim<kiln_store::Claim>> {
        // What is claimed is executed next.
        self.lease()?;
        let key = Digest::from_bytes(*key.as_bytes());
        if let Some(claim) = self.store.try_claim(&key)? {
            return Ok(Claim::Owned(claim));
        }
        let holder = match self.store.claim_holders(&key).first().copied() {
            Some(process) if process == std::process::id() => "another step of this build".to_owned(),
            Some(process) => format!("another build (process {process})"),
            None => "another build".to_owned(),
        };
        Ok(Claim::Busy { holder })
    }

    fn wait(&self, _key: &Key, timeout: Duration) -> Result<()> {
        std::thread::sleep(timeout.min(Duration::from_millis(20)));
        Ok(())
    }

    fn record(&self, entry: Entry<'_, Step>) -> Result<Step> {
        let root = entry.preimage.inputs.iter().find(|input| input.name == ROOT);
        let inputs = entry.preimage.inputs.iter().map(|input| RecordInput {
            name: input.name.clone(),
            selector: input.selector.clone(),
            digest: input.digest,
        });
        let bytes = match entry.result.layer {
            Some(layer) => self.store.layer(layer)?.map_or(0, |layer| layer.files_size),
            None => 0,
        };
        let (text, shared) = entry.preimage.operation.text_and_place(ENVIRONMENT);
        let record = CacheRecord {
            key: Digest::from_bytes(*entry.key.as_bytes()),
            operation: entry.preimage.operation.digest(),
            operation_name: entry.preimage.operation.name().to_owned(),
            operation_json: text.into_bytes(),
            shared,
            inputs: inputs.collect(),
            parent: root.map_or(ChainId::SCRATCH, |root| ChainId(root.digest)),
            result: entry.result.chain,
            layer: entry.result.layer,
            wall_time: entry.duration,
            bytes,
            created: entry.result.created,
            name: shortened(entry.name).to_owned(),
        };
        let made = match entry.earlier {
            Earlier::Kept => FirstMade::Kept,
            Earlier::Replaced => FirstMade::Now,
        };
        let created = self.store.record(&record, made)?;
        Ok(Step { created, ..*entry.result })
    }
}

impl Executor<Operation> for Engine<'_> {
    type Result = Step;
    type Error = Error;

    fn preimage(
        &self,
        operation: &Operation,
        inputs: &[Given<'_, Step>],
        context: &Context<'_>,
    ) -> std::result::Result<Identity, Stop<Error>> {
        self.identity(operation, inputs, context).map_err(ended)
    }

    fn settled(&self, operation: &Operation, context: &Context<'_>) {
        if let Operation::Copy(_) = operation {
            // Of many files it takes much memory.
            let _unused =
                self.selections.lock().unwrap_or_else(PoisonError::into_inner).remove(&context.vertex());
        }
    }

    fn execute(
        &self,
        operation: &Operation,
        preimage: &Preimage,
        inputs: &[Given<'_, Step>],
        context: &Context<'_>,
    ) -> std::result::Result<Done<Step>, Stop<Error>> {
        self.carry_out(operation, preimage, inputs, context).map_err(ended)
    }
}

/// How an operation ended that was told to end while it read or waited: that is no failure.
fn ended(stop: Stop<Error>) -> Stop<Error> {
    match stop {
        Stop::Failed(error) => error.stop(),
        Stop::Canceled => Stop::Canceled,
    }
}

impl Engine<'_> {
    fn identity(
        &self,
        operation: &Operation,
        inputs: &[Given<'_, Step>],
        context: &Context<'_>,
    ) -> std::result::Result<Identity, Stop<Error>> {
        let isolation = match self.request.executions {
            Executions::Allowed(isolation) => isolation,
            Executions::WithoutCommands { .. } | Executions::Refused => Isolation::Namespaces,
        };
        let ownership = self.store.ownership().name();
        let fixed = operation.key_operation(&self.platform, ownership, isolation, &self.environments);
        let mut keyed = Vec::new();
        if let Some(root) = inputs.first() {
            keyed.push(Input { name: ROOT.to_owned(), selector: String::new(), digest: root.result.chain.0 });
        }
        match operation {
            Operation::Base(_) | Operation::Workdir(_) => {}
            Operation::Copy(copy) => match self.copy_input(copy, inputs, context)? {
                Some(input) => keyed.push(input),
                None => return Ok(Identity::NeedsData(missing(inputs))),
            },
            Operation::Download(download) => return self.download_identity(download, fixed, context),
            Operation::Git(address) => return self.git_identity(address, fixed, context),
            Operation::Run(run) => {
                for (mount, source, path) in run.keyed_mounts() {
                    match self.mount_input(&mount.target, source, path, inputs, context)? {
                        Some(input) => keyed.push(input),
                        None => {
                            let MountSource::Input(position) = source else { continue };
                            return Ok(Identity::NeedsData(vec![position]));
                        }
                    }
                }
            }
        }
        Ok(Identity::Known(Preimage { operation: fixed, inputs: keyed }))
    }

    fn carry_out(
        &self,
        operation: &Operation,
        preimage: &Preimage,
        inputs: &[Given<'_, Step>],
        context: &Context<'_>,
    ) -> std::result::Result<Done<Step>, Stop<Error>> {
        let steps: Vec<Step> = inputs.iter().map(|input| input.result).collect();
        if self.request.executions == Executions::Refused && !matches!(operation, Operation::Base(_)) {
            return Err(Stop::Failed(Error::NeedsFiles));
        }
        if let (Operation::Run(_) | Operation::Workdir(_) | Operation::Copy(_), Some(root)) =
            (operation, steps.first())
        {
            self.store.check_stackable(&self.layers(root.chain)?, 1).map_err(Error::Store)?;
        }
        match operation {
            Operation::Base(layers) => {
                let step = Step { chain: ChainId::of(layers), layer: None, created: 0 };
                Ok(step.into())
            }
            Operation::Run(run) => {
                let isolation = match &self.request.executions {
                    Executions::Allowed(isolation) => *isolation,
                    Executions::WithoutCommands { reason } => {
                        return Err(Stop::Failed(Error::NoCommands { reason: reason.clone() }));
                    }
                    Executions::Refused => return Err(Stop::Failed(Error::NeedsFiles)),
                };
                crate::run::execute(self, run, isolation, preimage, &steps, context)
            }
            Operation::Workdir(workdir) => {
                let layer = self.workdir(workdir, steps[0].chain, context)?;
                Ok(self.made(steps[0].chain, layer).into())
            }
            Operation::Copy(copy) => self.copy(copy, preimage, &steps, context),
            Operation::Download(download) => self.download(download, preimage, context),
            Operation::Git(address) => self.git(address, preimage, context),
        }
    }
}

impl Engine<'_> {
    /// A new layer on a chain, made now.
    pub(crate) fn made(&self, parent: ChainId, layer: DiffId) -> Step {
        Step { chain: parent.with(layer), layer: Some(layer), created: now() }
    }
}

/// The sources, by position, whose data is gone.
fn missing(inputs: &[Given<'_, Step>]) -> Vec<usize> {
    (1..inputs.len()).filter(|position| !inputs[*position].present).collect()
}

/// So much of a step's name as a list can show.
fn shortened(name: &str) -> &str {
    const MOST_BYTES: usize = 4096;
    let end = (0..=name.len().min(MOST_BYTES)).rev().find(|end| name.is_char_boundary(*end));
    &name[..end.unwrap_or_default()]
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use kiln_layer::{LayerWriter, Metadata, Outputs, RootView, Source};
    use kiln_store::{NewBlob, NewLayer, Ownership};

    use super::*;
    use crate::lab::request;

    /// Publishes a layer of one file on scratch, as a COPY does.
    fn layer(store: &Store, lease: &Lease, number: u8) -> DiffId {
        let mut writer = LayerWriter::new();
        let metadata = Metadata { size: 1, ..Metadata::new(kiln_layer::Kind::Regular, 0o644) };
        writer.add(b"number", metadata, Source::Bytes(vec![number])).expect("added");
        let path = lease.fresh_path("blob");
        let mut tar = fs_err::File::create_new(&path).expect("made");
        let outputs = Outputs { tar: Some(&mut tar), unpack: None };
        let written = writer.finish(&RootView::new(Vec::new()), outputs).expect("written");
        let digest = written.diff_id.0;
        let blob = NewBlob { path, digest, size: written.index.tar_size(), compression: "none" };
        let new = NewLayer { index: written.index, blob: Some(blob), snapshot: None };
        store.publish_layer(lease, ChainId::SCRATCH, new).expect("published")
    }

    #[test]
    fn the_store_keeps_the_contract_of_records() {
        let directory = tempfile::tempdir().expect("a directory");
        let request = request(directory.path().to_path_buf(), b"");
        let open_store =
            || Store::open(&directory.path().join("store"), Ownership::SingleId).expect("a store");
        // Each has a connection of its own, as another process has.
        let stores: Vec<Store> = (0..8).map(|_| open_store()).collect();
        let processes: Vec<_> =
            stores.iter().map(|store| (store, store.lease_late("test").expect("a lease"))).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let open = || {
            let (store, lease) = &processes[next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)];
            Engine { platform: "linux/amd64".to_owned(), ..Engine::new(store, lease, &request) }
        };
        let store = open_store();
        let lease = store.lease("results").expect("a lease");
        let result = |number: u8| {
            let layer = layer(&store, &lease, number);
            Step { chain: ChainId::SCRATCH.with(layer), layer: Some(layer), created: i64::from(number) }
        };
        kiln_graph::contract::records(open, result);
    }

    #[test]
    fn a_build_that_waits_for_itself_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let request = request(directory.path().to_path_buf(), b"");
        let store = Store::open(&directory.path().join("store"), Ownership::SingleId).expect("a store");
        let lease = store.lease_late("test").expect("a lease");
        let engine = Engine::new(&store, &lease, &request);
        let preimage =
            Preimage { operation: kiln_graph::Operation::new("run", 1, "linux/amd64"), inputs: Vec::new() };
        let key = preimage.key();
        let held = engine.claim(&key).expect("claimed");
        assert!(matches!(held, Claim::Owned(_)));
        let Claim::Busy { holder } = engine.claim(&key).expect("asked") else { panic!("claimed twice") };
        assert_eq!(holder, "another step of this build");
        drop(held);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(shortened("RUN x"), "RUN x");
        assert_eq!(shortened(&format!("a{}", "ü".repeat(9000))), format!("a{}", "ü".repeat(2047)));
    }

    /// Many steps with many variables: what they have in common is stored once, and a miss is compared only with what can
    /// explain it.
    #[test]
    fn steps_with_many_variables_stay_small() {
        const STEPS: u8 = 100;
        let directory = tempfile::tempdir().expect("a directory");
        let request = request(directory.path().to_path_buf(), b"");
        let store = Store::open(&directory.path().join("store"), Ownership::SingleId).expect("a store");
        let lease = store.lease_late("test").expect("a lease");
        let engine = Engine::new(&store, &lease, &request);
        let preimage = |argument: &str, last: &str, root: u8| {
            let variables = (0..2_000).map(|number| format!("variable{number}=value{number}"));
            let variables: Vec<_> = variables.chain([last.to_owned()]).collect();
            let digest = Digest::from_bytes([root; 32]);
            Preimage {
                operation: kiln_graph::Operation::new("run", 1, "linux/amd64")
                    .with("arguments", vec![argument])
                    .with(ENVIRONMENT, variables),
                inputs: vec![Input { name: ROOT.to_owned(), selector: String::new(), digest }],
            }
        };
        let result = Step { chain: ChainId::SCRATCH, layer: None, created: 0 };
        let record = |preimage: &Preimage| {
            let entry = Entry {
                key: preimage.key(),
                preimage,
                result: &result,
                duration: Duration::ZERO,
                earlier: Earlier::Kept,
                name: "RUN",
                span: None,
            };
            engine.record(entry).expect("recorded");
        };
        (0..STEPS).for_each(|number| record(&preimage(&number.to_string(), "A=1", number)));
        let size = |name: &str| fs_err::metadata(store.root().join(name)).map_or(0, |found| found.len());
        let one = preimage("0", "A=1", 0).operation.to_text().len() as u64;
        let all = size("kiln.db") + size("kiln.db-wal");
        assert!(all < u64::from(STEPS) * one / 4, "{all} bytes for {STEPS} operations of {one} bytes each");
        // The same root with another variable: one record explains that, the others have nothing to say.
        let missed = preimage("7", "A=2", 7);
        // Of so many only the newest are looked at.
        record(&preimage("7", "A=1", 7));
        assert_eq!(engine.candidates(&missed).expect("candidates"), [preimage("7", "A=1", 7)]);
        assert_eq!(engine.candidates(&preimage("new", "A=1", 200)).expect("candidates"), []);
    }
}
