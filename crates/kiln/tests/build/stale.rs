//! A cached build gives what a build from nothing gives, whatever was changed meanwhile.
//!
//! A case is a random Dockerfile over a random context. Each round changes something, then builds with the store that
//! has seen all earlier rounds, and with `--no-cache` in a store that has seen nothing but the base image. Both must
//! fail with the same words, or give the same image. Before some rounds there is another build, of which a file changes
//! meanwhile: whatever comes of that one, it may leave no record that is not true.
//! An ordinary user can run it, too: then a tree is what the index says of it.
//! The test tells its seed; the same and longer runs by hand:
//!
//! ```text
//! KILN_PROPERTY_SEED=1234 KILN_PROPERTY_ROUNDS=5000 cargo test --release -p kiln --test build stale -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bench::{Bench, is_root, say, text};
use crate::dice::{Dice, first_seed, variable};
use crate::recipe::Recipe;

/// The seed where CI is set.
const GATE_SEED: u64 = 1_795_249_000;
/// Rounds where nobody asks for more.
const ROUNDS: usize = 24;
/// Rounds on one store.
const ROUNDS_OF_A_CASE: usize = 12;
/// Before which round of a case files are left alone for so long that the stat cache learns them.
const ROUND_OF_REST: usize = 3;
const REST: Duration = Duration::from_millis(2100);
/// The store that keeps its cache.
const KEPT: &str = "kept";
/// The store that is new in each round.
const NEW: &str = "new";
/// An archive that Dockerfiles speak of.
const TAR: &str = "tar";
/// Bytes of each of its files.
const TAR_FILE: usize = 300 << 10;
/// Paths that Dockerfiles speak of.
const FILES: [&str; 9] =
    ["a", "b.txt", "s p", "d/a", "d/b.txt", "d/e/c", "d/e/x.txt", "f.d/z.txt", "f.d/deep/c"];
const IGNORED: [&str; 12] =
    ["a", "*.txt", "d", "d/e", "!d/e/c", "**/c", "!d/b.txt", "# nothing", "f.d/**", "**/*.txt", "!a", "/f.d"];

struct Case {
    bench: Bench,
    dice: Dice,
    recipe: Recipe,
    arguments: BTreeMap<&'static str, &'static str>,
    /// What could be built last.
    good: Option<(Recipe, BTreeMap<&'static str, &'static str>)>,
    /// Everything that was done, for whoever has to understand a failure.
    told: Vec<String>,
}

/// What came of the rounds.
#[derive(Default)]
struct Tally {
    rounds: usize,
    refused: usize,
    hits: usize,
    steps: usize,
    /// Builds while something was written.
    raced: usize,
}

#[test]
fn never_a_stale_hit() {
    let first = first_seed("KILN_PROPERTY_SEED", GATE_SEED);
    let rounds = variable("KILN_PROPERTY_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    say(&format!("KILN_PROPERTY_SEED={first}"));
    let mut tally = Tally::default();
    let mut seeds = Dice::new(first);
    let mut seed = first;
    while tally.rounds < rounds {
        let Some(mut case) = Case::new(seed) else { return };
        for _ in 0..ROUNDS_OF_A_CASE.min(rounds - tally.rounds) {
            case.round(seed, &mut tally);
        }
        let checked = case.bench.run(KEPT, &["system", "check"]);
        assert!(checked.status.success(), "seed {seed}: {checked:?}");
        case.bench.remove_store(KEPT);
        case.bench.remove_store(NEW);
        seed = seeds.next();
    }
    let Tally { rounds, refused, hits, steps, raced } = tally;
    say(&format!(
        "{rounds} rounds, {refused} of them refused, {raced} of them after a race; {hits} hits in {steps} steps"
    ));
    // Else nothing was tried.
    assert!(refused < rounds && hits > 0 && hits < steps && raced > 0);
}

impl Case {
    fn new(seed: u64) -> Option<Self> {
        let bench = Bench::of_anyone()?;
        let mut dice = Dice::new(seed);
        let recipe = Recipe::new(&mut dice);
        let arguments = BTreeMap::from([("SOURCE_DATE_EPOCH", "1")]);
        let mut case = Self { bench, dice, recipe, arguments, good: None, told: Vec::new() };
        case.repair();
        case.copy_store(KEPT);
        Some(case)
    }

    /// Makes a store that knows the base image alone.
    fn copy_store(&self, name: &str) {
        self.bench.remove_store(name);
        let mut copy = Command::new("cp");
        let status = copy.arg("-a").arg(self.bench.path("store")).arg(self.bench.path(name)).status();
        assert!(status.expect("cp").success());
    }

    fn round(&mut self, seed: u64, tally: &mut Tally) {
        if tally.rounds % ROUNDS_OF_A_CASE == ROUND_OF_REST {
            std::thread::sleep(REST);
            self.told.push("a rest".to_owned());
        }
        for _ in 0..self.dice.below(4) {
            let change = self.change();
            self.told.push(change);
        }
        if self.dice.one_in(3) {
            let race = self.race();
            self.told.push(race);
            tally.raced += 1;
        }
        self.bench.write("Dockerfile", &self.recipe.text());
        self.copy_store(NEW);
        let cached = self.build(KEPT, &[]);
        let anew = self.build(NEW, &["--no-cache"]);
        tally.rounds += 1;
        tally.refused += usize::from(cached.image.is_err());
        tally.hits += cached.hits;
        tally.steps += cached.steps;
        let is_last = tally.rounds.is_multiple_of(ROUNDS_OF_A_CASE);
        let anew = self.failed_elsewhere(&cached, anew);
        if cached.image != anew.image || is_last && cached.image.is_ok() {
            let [one, other] = [(KEPT, &cached), (NEW, &anew)].map(|(store, found)| self.tree(store, found));
            if cached.image != anew.image || one != other {
                self.fail(seed, &cached, &anew, &differences(&one, &other));
            }
        }
        self.told.push(format!("built: {:?}", cached.image));
        if cached.image.is_ok() {
            self.good = Some((self.recipe.clone(), self.arguments.clone()));
            return;
        }
        self.repair();
        match &self.good {
            Some((recipe, arguments)) => {
                (self.recipe, self.arguments) = (recipe.clone(), arguments.clone());
            }
            None => self.recipe = Recipe::new(&mut self.dice),
        }
    }

    /// Builds while a file that is new to it becomes another one, in place. In the end it mostly is what it was before.
    fn race(&mut self) -> String {
        let name = self.dice.pick(&[TAR, TAR, TAR, "a", "b.txt", "d/a", "d/e/c"]);
        let content = |dice: &mut Dice| match name {
            TAR => archive(dice.next() as u8),
            _ => format!("{:x}\n", dice.next()).into_bytes(),
        };
        let (before, other) = (content(&mut self.dice), content(&mut self.dice));
        self.put(name, "");
        let path = self.file(name);
        fs_err::write(&path, &before).expect("written");
        self.recipe.take_from_context(&mut self.dice);
        self.bench.write("Dockerfile", &self.recipe.text());
        let pause = Duration::from_millis(self.dice.below(500) as u64);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(pause);
                let file = fs_err::OpenOptions::new().write(true).open(&path);
                file.and_then(|mut file| file.write_all(&other)).expect("written");
            });
            self.build(KEPT, &[]).image
        });
        let last = if self.dice.one_in(4) { &other } else { &before };
        fs_err::write(&path, last).expect("written");
        let end = if *last == before { "as before" } else { "another" };
        format!("{name}: new, another after {pause:?} of a build: {outcome:?}, {end} in the end")
    }

    fn build(&self, store: &str, options: &[&str]) -> Found {
        let mut kiln =
            self.bench.kiln(store, &["build", "--progress=plain", "--iidfile=id", "-f", "Dockerfile"]);
        for (name, value) in &self.arguments {
            kiln.arg(format!("--build-arg={name}={value}"));
        }
        let output = kiln.args(options).arg("context").output().expect("kiln");
        let told = text(&output.stderr);
        let lines = |end: &str| told.lines().filter(|line| line.contains(end)).count();
        let image = if output.status.success() {
            Ok(self.bench.read("id"))
        } else {
            assert_eq!(output.status.code(), Some(1), "{told}");
            Err(told.lines().filter(|line| line.starts_with("kiln: ")).collect())
        };
        let hits = lines(" CACHED");
        Found { image, hits, steps: hits + lines(" DONE "), told }
    }

    /// Of several stages that cannot be built, either build tells the one that it came to first. One of the two does not
    /// need the other: built alone in the other store, it must fail with the same words.
    fn failed_elsewhere(&self, cached: &Found, anew: Found) -> Found {
        let (Err(one), Err(other)) = (&cached.image, &anew.image) else { return anew };
        let (Some(stage), Some(other_stage)) = (cached.failed_stage(), anew.failed_stage()) else {
            return anew;
        };
        if one == other || stage == other_stage {
            return anew;
        }
        let again = self.build(NEW, &["--no-cache", "--target", stage]);
        if again.image == cached.image {
            return again;
        }
        let again = self.build(KEPT, &["--target", other_stage]);
        if again.image == anew.image { Found { image: cached.image.clone(), ..again } } else { anew }
    }

    /// Every file of an image, with all that is known of it but times.
    fn tree(&self, store: &str, found: &Found) -> Tree {
        let Ok(id) = &found.image else { return BTreeMap::new() };
        if !is_root() {
            // Owners that an ordinary user cannot give: the index tells of them.
            let output = self.bench.run(store, &["image", "files", id]);
            assert!(output.status.success(), "{output:?}");
            return text(&output.stdout).lines().map(|line| (line.into(), (String::new(), 1))).collect();
        }
        let to = self.bench.path(&format!("{store}-tree"));
        if to.exists() {
            fs_err::remove_dir_all(&to).expect("removed");
        }
        let output = self.bench.kiln(store, &["image", "unpack", id]).arg(&to).output().expect("kiln");
        assert!(output.status.success(), "{output:?}");
        let mut tree = BTreeMap::new();
        look(&to, Path::new(""), &mut tree);
        tree
    }

    fn fail(&self, seed: u64, cached: &Found, anew: &Found, differences: &str) -> ! {
        panic!(
            "KILN_PROPERTY_SEED={seed}: the cache gave {:?}, a build from nothing {:?}\n{differences}\n\
             {:?}\n{}\n{}\n[cached]\n{}\n[anew]\n{}",
            cached.image,
            anew.image,
            self.arguments,
            self.told.join("\n"),
            self.recipe.text(),
            cached.told,
            anew.told,
        );
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bench.path("context").join(name)
    }

    /// Makes sure that what Dockerfiles speak of is there.
    fn repair(&mut self) {
        let _ = fs_err::remove_file(self.file(".dockerignore"));
        for name in FILES {
            let path = self.file(name);
            if !path.is_file() {
                self.put(name, "first\n");
            }
        }
        if !self.file(TAR).is_file() {
            self.remove(TAR);
            fs_err::write(self.file(TAR), archive(b'a')).expect("written");
        }
    }

    /// Writes a file, whatever is there or on the way to it.
    fn put(&self, name: &str, content: &str) {
        let path = self.file(name);
        let mut parent = self.file("");
        for part in Path::new(name).parent().expect("a parent") {
            parent.push(part);
            if fs_err::symlink_metadata(&parent).is_ok_and(|metadata| !metadata.is_dir()) {
                fs_err::remove_file(&parent).expect("removed");
            }
        }
        self.remove(name);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs_err::write(path, content).expect("written");
    }

    fn remove(&self, name: &str) {
        let path = self.file(name);
        match fs_err::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(path).expect("removed"),
            Ok(_) => fs_err::remove_file(path).expect("removed"),
            Err(_) => {}
        }
    }

    /// Changes something between two builds, and says what.
    fn change(&mut self) -> String {
        let name = self.dice.pick(&FILES);
        let path = self.file(name);
        // What a link leads to may be outside of the context: it is never written to, nor its mode changed.
        let is_file = fs_err::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        let content = self.dice.pick(&["", "first\n", "other\n", "third\n", "longer than the others\n"]);
        match self.dice.below(20) {
            0..=3 => self.recipe.edit(&mut self.dice),
            4 => {
                let name = self.dice.pick(&["A", "B", "SOURCE", "HTTP_PROXY"]);
                let value = self.dice.pick(&["a", "d", "b.txt", "*.txt"]);
                self.arguments.insert(name, value);
                format!("argument {name}={value}")
            }
            5 => {
                let name = self.dice.pick(&["A", "B", "SOURCE", "HTTP_PROXY"]);
                self.arguments.remove(name);
                format!("no argument {name}")
            }
            6 => {
                let mut lines = String::new();
                for _ in 0..self.dice.below(4) {
                    lines.push_str(self.dice.pick(&IGNORED));
                    lines.push('\n');
                }
                self.put(".dockerignore", &lines);
                format!("ignore {lines:?}")
            }
            7 if self.dice.one_in(2) => {
                let letter = b'a' + self.dice.below(3) as u8;
                self.remove(TAR);
                fs_err::write(self.file(TAR), archive(letter)).expect("written");
                format!("{TAR}: archive of {:?}", char::from(letter))
            }
            7 | 8 => {
                self.put(name, content);
                format!("{name}: new file {content:?}")
            }
            9 | 10 if is_file => self.forge(name),
            11 if is_file => {
                let mode = [0o600, 0o644, 0o755, 0o4755, 0o1777, 0o700][self.dice.below(6)];
                let done = fs_err::set_permissions(&path, PermissionsExt::from_mode(mode));
                format!("{name}: mode {mode:o} {done:?}")
            }
            12 if fs_err::symlink_metadata(self.file("d")).is_ok_and(|metadata| metadata.is_dir()) => {
                let mode = [0o700, 0o755, 0o2755][self.dice.below(3)];
                let done = fs_err::set_permissions(self.file("d"), PermissionsExt::from_mode(mode));
                format!("d: mode {mode:o} {done:?}")
            }
            13 => {
                let to = self.dice.pick(&["new", "d/new.txt", "x.txt", "a"]);
                let done = fs_err::rename(&path, self.file(to));
                format!("{name}: renamed to {to} {done:?}")
            }
            14 => {
                let to = self.dice.pick(&["d/hard.txt", "hard", "b.txt", "f.d/z.txt"]);
                if to == name {
                    return "nothing".to_owned();
                }
                self.remove(to);
                let done = fs_err::hard_link(&path, self.file(to));
                format!("{to}: hard link to {name} {done:?}")
            }
            15 => {
                let to = self.dice.pick(&["a", "e/c", "/d/b.txt", "/nowhere", "nowhere", "../d", "."]);
                self.put(name, "");
                self.remove(name);
                fs_err::os::unix::fs::symlink(to, self.file(name)).expect("linked");
                format!("{name}: symlink to {to}")
            }
            16 => {
                self.remove(name);
                format!("{name}: removed")
            }
            17 => self.exchange(name),
            18 => {
                self.put(&format!("{name}/inner.txt"), content);
                format!("{name}: a directory")
            }
            _ => {
                let words: [&[&str]; 3] =
                    [&["system", "prune", "-f"], &["image", "prune", "-f"], &["images", "-q"]];
                let words = words[self.dice.below(3)];
                let output = self.bench.run(KEPT, words);
                assert!(output.status.success(), "{output:?}");
                format!("{words:?}")
            }
        }
    }

    /// Other content of the same size with the times that the file had, in place or in a new file.
    fn forge(&mut self, name: &str) -> String {
        let path = self.file(name);
        let metadata = fs_err::symlink_metadata(&path).expect("its metadata");
        assert!(metadata.is_file(), "{name} is no file of the context");
        let mut bytes = fs_err::read(&path).expect("read");
        let Some(first) = bytes.first_mut() else { return "nothing".to_owned() };
        *first = b'A' + (self.dice.next() % 26) as u8;
        let in_place = self.dice.one_in(2);
        let to = if in_place { path.clone() } else { self.bench.path("forged") };
        fs_err::write(&to, bytes).expect("written");
        fs_err::set_permissions(&to, metadata.permissions()).expect("its mode");
        let times = metadata.modified().and_then(|modified| {
            let times = std::fs::FileTimes::new().set_modified(modified);
            fs_err::OpenOptions::new().write(true).open(&to)?.file().set_times(times)
        });
        times.expect("its times");
        if !in_place {
            fs_err::rename(&to, &path).expect("renamed");
        }
        format!("{name}: forged, {}", if in_place { "in place" } else { "another file" })
    }

    /// Exchanges two files, which keep their times and inodes.
    fn exchange(&mut self, name: &str) -> String {
        let other = self.dice.pick(&FILES);
        let [one, two, between] = [self.file(name), self.file(other), self.bench.path("between")];
        if name == other || !one.is_file() || !two.is_file() {
            return "nothing".to_owned();
        }
        for (from, to) in [(&one, &between), (&two, &one), (&between, &two)] {
            fs_err::rename(from, to).expect("renamed");
        }
        format!("{name} and {other}: exchanged")
    }
}

/// A tar of some files with this content, always of the same size.
fn archive(letter: u8) -> Vec<u8> {
    let mut tar = Vec::new();
    for name in ["one", "sub/two", "three"] {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{TAR_FILE:011o}\0").as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.resize(tar.len() + TAR_FILE, letter);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// What came of a build: an image, or why there is none.
struct Found {
    image: Result<String, String>,
    hits: usize,
    steps: usize,
    told: String,
}

impl Found {
    /// The stage whose step failed.
    fn failed_stage(&self) -> Option<&str> {
        let line = self.told.lines().find_map(|line| line.strip_prefix(" > ["))?;
        line.split(' ').next()
    }
}

/// What is known of each file but times, and how many names it has.
type Tree = BTreeMap<PathBuf, (String, u64)>;

fn look(root: &Path, path: &Path, tree: &mut Tree) {
    let full = root.join(path);
    let metadata = fs_err::symlink_metadata(&full).expect("its metadata");
    let mut links = 1;
    let mut shown = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
    if metadata.is_symlink() {
        shown.push_str(&format!(" -> {}", fs_err::read_link(&full).expect("read").display()));
    } else if metadata.is_file() {
        let mut hasher = std::hash::DefaultHasher::new();
        fs_err::read(&full).expect("read").hash(&mut hasher);
        links = metadata.nlink();
        shown.push_str(&format!(" {:x}", hasher.finish()));
    } else if metadata.is_dir() {
        for entry in fs_err::read_dir(&full).expect("read") {
            look(root, &path.join(entry.expect("read").file_name()), tree);
        }
    }
    tree.insert(path.to_owned(), (shown, links));
}

fn differences(one: &Tree, other: &Tree) -> String {
    let mut paths: Vec<_> =
        one.keys().chain(other.keys()).filter(|path| one.get(*path) != other.get(*path)).collect();
    paths.sort();
    paths.dedup();
    if paths.is_empty() {
        return "the trees are equal".to_owned();
    }
    let lines = paths.iter().map(|path| {
        let shown = |tree: &Tree| tree.get(*path).cloned().unwrap_or_default();
        format!("/{}: {:?} is not {:?}\n", path.display(), shown(one), shown(other))
    });
    lines.collect()
}

/// What is kept of a context saves work alone: if it is wrong, the build reads the files.
#[test]
fn what_is_remembered_of_a_context_may_be_wrong() {
    let Some(bench) = Bench::new() else { return };
    bench.write("context/one", "one\n");
    bench.write("Dockerfile", "FROM bb\nCOPY . /d/\n");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let words = ["build", "-q", "-t", "made", "-f", "Dockerfile", "context"];
    assert!(bench.run("store", &words).status.success());
    let mut caches = fs_err::read_dir(bench.path("store/context")).expect("listed");
    let cache = caches.next().expect("one").expect("read").path();
    let mut bytes = fs_err::read(&cache).expect("read");
    *bytes.last_mut().expect("a digest") ^= 1;
    fs_err::write(&cache, bytes).expect("written");
    bench.write("context/two", "two\n");
    let built = bench.run("store", &words);
    assert!(built.status.success(), "{built:?}");
    let shown = bench.run("store", &["run", "--rm", "made", "cat", "/d/one", "/d/two"]);
    assert_eq!(text(&shown.stdout), "one\ntwo\n", "{shown:?}");
}
