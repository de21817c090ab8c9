//! The workloads, as data.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::archives::Image;
use super::engines::{Compression, Task};
use super::inputs::Inputs;
use super::options::Size;

/// When an engine's store is made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Before every repeat.
    Fresh,
    /// Once; workloads that name the same preparation share it.
    Kept(String),
}

/// How it is told that two engines did the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// By the files of the image that the first build made.
    Files,
    /// By the exit alone.
    Exit,
}

/// Something to measure.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// `group/what`.
    pub(crate) name: String,
    pub(crate) title: String,
    /// The curve that this is a point of, and its size there.
    pub(crate) growth: Option<(&'static str, usize)>,
    pub(crate) start: Start,
    /// In the store at the start.
    pub(crate) images: Vec<Image>,
    /// Done at the start, untimed.
    pub(crate) before: Vec<Task>,
    /// The context in which one file is changed before every repeat.
    pub(crate) changes: Option<PathBuf>,
    /// What is timed, one after the other.
    pub(crate) tasks: Vec<Task>,
    pub(crate) check: Check,
}

impl Workload {
    /// The part of the name that tables are made of.
    pub(crate) fn group(&self) -> &str {
        self.name.split('/').next().unwrap_or(&self.name)
    }
}

/// Groups in the order of the tables, with their headings.
pub(crate) const GROUPS: [(&str, &str); 8] = [
    ("unchanged", "Rebuilds with nothing changed"),
    ("run-steps", "RUN steps"),
    ("copy", "COPY and ADD"),
    ("stages", "Stages"),
    ("transfer", "Images in and out"),
    ("container", "Containers"),
    ("queries", "Questions to a store"),
    ("start", "Start of the program"),
];

/// Curves, with what their size counts.
pub(crate) const UNCHANGED_STEPS: &str = "unchanged rebuild by steps";
pub(crate) const UNCHANGED_FILES: &str = "unchanged rebuild by files of the context";
pub(crate) const UNCHANGED_IMAGES: &str = "unchanged rebuild by images in the store";
pub(crate) const RUN_STEPS: &str = "cold RUN steps";
pub(crate) const COPY_FILES: &str = "cold COPY by files";
pub(crate) const LIST_IMAGES: &str = "images by images in the store";
pub(crate) const COPY_FROM_FILES: &str = "cold COPY --from a gzip base, by files";
pub(crate) const LOAD_FILES: &str = "load of gzip by files of the image";
pub(crate) const LOAD_LAYERS: &str = "load by layers of the image";
pub(crate) const RUN_LAYERS: &str = "run --rm by layers of the image";
/// docker mounts no more than 125.
const LAYERS: [usize; 3] = [1, 10, 100];

/// What a workload list is made with.
struct Plan<'a> {
    inputs: &'a Inputs,
    /// Where Dockerfiles are written.
    place: &'a Path,
    workloads: Vec<Workload>,
}

/// All workloads of a size. Inputs are made only for those that are wanted.
pub(crate) fn all(
    inputs: &Inputs,
    size: Size,
    place: &Path,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Workload>> {
    std::fs::create_dir_all(place)?;
    // Whoever saves writes here.
    let saved = place.join("saved");
    std::fs::create_dir_all(&saved)?;
    std::fs::set_permissions(&saved, std::fs::Permissions::from_mode(0o777))?;
    let mut plan = Plan { inputs, place, workloads: Vec::new() };
    plan.unchanged(size, wanted)?;
    plan.run_steps(size, wanted)?;
    plan.copies(wanted)?;
    plan.stages(wanted)?;
    plan.transfers(wanted)?;
    plan.loads_by_size(wanted)?;
    plan.containers(wanted)?;
    plan.queries(wanted)?;
    Ok(plan.workloads)
}

impl Plan<'_> {
    /// A build of a Dockerfile; the name of its image is made of its own.
    fn build(&self, name: &str, context: PathBuf, text: &str) -> Result<Task> {
        let short = name.replace('/', "-");
        let directory = self.place.join(&short);
        std::fs::create_dir_all(&directory)?;
        let dockerfile = directory.join("Dockerfile");
        std::fs::write(&dockerfile, text)?;
        Ok(Task::Build { context, dockerfile, tag: format!("bench-{short}") })
    }

    fn workload(&self, name: &str, title: String, start: Start, tasks: Vec<Task>) -> Workload {
        let images = vec![self.inputs.busybox.clone()];
        Workload {
            name: name.to_owned(),
            title,
            growth: None,
            start,
            images,
            before: Vec::new(),
            changes: None,
            tasks,
            check: Check::Exit,
        }
    }

    /// The same build twice: the second is timed.
    fn rebuilt(&self, name: &str, title: String, build: Task) -> Workload {
        let before = vec![build.clone()];
        Workload {
            before,
            check: Check::Files,
            ..self.workload(name, title, Start::Kept(name.to_owned()), vec![build])
        }
    }

    fn unchanged(&mut self, size: Size, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let steps: &[usize] = if size == Size::Quick { &[1, 12, 40] } else { &[1, 12, 40, 200] };
        for &count in steps {
            let name = format!("unchanged/steps-{count}");
            if wanted(&name) {
                let build = self.build(&name, self.inputs.empty()?, &stepped("FROM busybox\n", count))?;
                let title = format!("{} of RUN and ENV, empty context", plural(count, "step"));
                let growth = Some((UNCHANGED_STEPS, count));
                self.workloads.push(Workload { growth, ..self.rebuilt(&name, title, build) });
            }
        }
        let (tree, many) = (self.inputs.sizes.tree, self.inputs.sizes.many);
        for count in [tree / 100, tree / 10, tree, many] {
            let name = format!("unchanged/files-{count}");
            if wanted(&name) {
                let context =
                    if count == many { self.inputs.many(count)? } else { self.inputs.tree(count)? };
                let text = stepped("FROM busybox\nCOPY tree /tree\n", 12);
                let build = self.build(&name, context, &text)?;
                let title = format!("COPY of {} files and 12 steps", grouped(count));
                let growth = Some((UNCHANGED_FILES, count));
                self.workloads.push(Workload { growth, ..self.rebuilt(&name, title, build) });
            }
        }
        let images = self.inputs.sizes.images;
        for count in [images / 100, images / 10, images] {
            let name = format!("unchanged/images-{count}");
            if wanted(&name) {
                let text = stepped("FROM busybox\n", 12);
                let build = self.build(&name, self.inputs.empty()?, &text)?;
                let title = format!("12 steps, {} in the store", plural(count, "other image"));
                let load = Task::Load { archive: self.inputs.many_images(count)? };
                let growth = Some((UNCHANGED_IMAGES, count));
                let workload = self.rebuilt(&name, title, build.clone());
                self.workloads.push(Workload { growth, before: vec![load, build], ..workload });
            }
        }
        Ok(())
    }

    fn run_steps(&mut self, size: Size, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let counts: &[usize] = if size == Size::Quick { &[1, 10, 40] } else { &[1, 10, 40, 100] };
        for &count in counts {
            let name = format!("run-steps/cold-{count}");
            if wanted(&name) {
                let text =
                    (0..count).fold("FROM busybox\n".to_owned(), |text, n| text + &format!("RUN true {n}\n"));
                let build = self.build(&name, self.inputs.empty()?, &text)?;
                let title = format!("{}, nothing cached", plural(count, "trivial RUN step"));
                let workload = self.workload(&name, title, Start::Fresh, vec![build]);
                self.workloads.push(Workload {
                    growth: Some((RUN_STEPS, count)),
                    check: Check::Files,
                    ..workload
                });
            }
        }
        Ok(())
    }

    fn copies(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let count = self.inputs.sizes.tree;
        let files = format!("{} files ({} MB)", grouped(count), count * 8650 / 1_000_000);
        for (suffix, rest, last) in [("", "", ""), ("-run", ", then RUN", "RUN true\n")] {
            let text = format!("FROM busybox\nWORKDIR /data\nCOPY tree /data/tree\n{last}");
            let name = format!("copy/cold{suffix}");
            if wanted(&name) {
                let build = self.build(&name, self.inputs.tree(count)?, &text)?;
                let title = format!("COPY of {files}{rest}, cold");
                let workload = self.workload(&name, title, Start::Fresh, vec![build]);
                self.workloads.push(Workload {
                    check: Check::Files,
                    growth: last.is_empty().then_some((COPY_FILES, count)),
                    ..workload
                });
            }
            let name = format!("copy/changed{suffix}");
            if wanted(&name) {
                let context = self.inputs.tree(count)?;
                let build = self.build(&name, context.clone(), &text)?;
                let title = format!("COPY of {files}{rest}, one file changed");
                let changes = Some(context);
                self.workloads.push(Workload { changes, ..self.rebuilt(&name, title, build) });
            }
            let name = format!("copy/unchanged{suffix}");
            if wanted(&name) {
                let build = self.build(&name, self.inputs.tree(count)?, &text)?;
                let title = format!("COPY of {files}{rest}, unchanged");
                self.workloads.push(self.rebuilt(&name, title, build));
            }
        }
        for count in [count / 100, count / 10] {
            let name = format!("copy/cold-{count}");
            if wanted(&name) {
                let text = "FROM busybox\nWORKDIR /data\nCOPY tree /data/tree\n";
                let build = self.build(&name, self.inputs.tree(count)?, text)?;
                let title = format!("COPY of {} files, cold", grouped(count));
                let workload = self.workload(&name, title, Start::Fresh, vec![build]);
                self.workloads.push(Workload {
                    growth: Some((COPY_FILES, count)),
                    check: Check::Files,
                    ..workload
                });
            }
        }
        self.other_copies(wanted)
    }

    fn other_copies(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let count = self.inputs.sizes.tree;
        if wanted("copy/large") {
            let build = self.build("copy/large", self.inputs.large()?, "FROM busybox\nCOPY . /large/\n")?;
            let title = format!("COPY of four files of {} MiB, cold", self.inputs.sizes.large >> 20);
            let workload = self.workload("copy/large", title, Start::Fresh, vec![build]);
            self.workloads.push(Workload { check: Check::Files, ..workload });
        }
        if wanted("copy/add-tar") {
            let context = self.inputs.tree_tar(count)?;
            let build = self.build("copy/add-tar", context, "FROM busybox\nADD tree.tar /data/\n")?;
            let title = format!("ADD of a tar of {} files, cold", grouped(count));
            let workload = self.workload("copy/add-tar", title, Start::Fresh, vec![build]);
            self.workloads.push(Workload { check: Check::Files, ..workload });
        }
        self.copies_from_images(wanted)
    }

    /// Out of bases that came plain, and out of such as came compressed, whose files are not on the disk one by one.
    fn copies_from_images(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        if let Some(debian) = &self.inputs.debian {
            let bases = [("", "", debian.clone()), ("-gzip", " that came as gzip", debian.compressed())];
            for (suffix, came, base) in bases {
                let name = format!("copy/from-root{suffix}");
                if wanted(&name) {
                    let title = format!("COPY --from of a whole Debian root{came}, cold");
                    let workload = self.copy_from(&name, title, "/", base)?;
                    self.workloads.push(workload);
                }
            }
        }
        let count = self.inputs.sizes.tree;
        for count in [count / 500, count / 50, count / 5] {
            let name = format!("copy/from-files-{count}");
            if wanted(&name) {
                let title = format!("COPY --from of {} files that came as gzip, cold", grouped(count));
                let base = self.inputs.tree_image(count)?.compressed();
                let workload = self.copy_from(&name, title, "/", base)?;
                self.workloads.push(Workload { growth: Some((COPY_FROM_FILES, count)), ..workload });
            }
        }
        Ok(())
    }

    /// A cold COPY of a path of an image.
    fn copy_from(&self, name: &str, title: String, path: &str, base: Image) -> Result<Workload> {
        let text = format!("FROM {} AS root\nFROM busybox\nCOPY --from=root {path} /root/\n", base.name);
        let build = self.build(name, self.inputs.empty()?, &text)?;
        let images = vec![self.inputs.busybox.clone(), base];
        let workload = self.workload(name, title, Start::Fresh, vec![build]);
        Ok(Workload { images, check: Check::Files, ..workload })
    }

    fn stages(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        if wanted("stages/two") {
            let sleep = self.inputs.sizes.sleep;
            let text = format!(
                "FROM busybox AS a\nRUN sleep {sleep}; echo a > /a\nFROM busybox AS b\nRUN sleep {sleep}; echo b > /b\n\
                 FROM busybox\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
            );
            let build = self.build("stages/two", self.inputs.empty()?, &text)?;
            let title = format!("two independent stages that sleep {sleep} s each, cold");
            let workload = self.workload("stages/two", title, Start::Fresh, vec![build]);
            self.workloads.push(Workload { check: Check::Files, ..workload });
        }
        Ok(())
    }

    fn transfers(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let Some(debian) = self.inputs.debian.clone() else { return Ok(()) };
        let bytes = std::fs::metadata(&debian.rootfs)?.len() / 1_000_000;
        let forms = [("plain", &debian.archive), ("gzip", &debian.gzip), ("zstd", &debian.zstd)];
        for (form, archive) in forms {
            let name = format!("transfer/load-{form}");
            if wanted(&name) {
                let title = format!("load of a Debian root ({bytes} MB), {form}");
                let task = Task::Load { archive: archive.clone() };
                let workload = self.workload(&name, title, Start::Fresh, vec![task]);
                self.workloads.push(Workload { images: Vec::new(), ..workload });
            }
        }
        if wanted("transfer/load-run") {
            let run = Task::Run { image: "debian".to_owned(), words: vec!["/bin/true".to_owned()] };
            let tasks = vec![Task::Load { archive: debian.gzip.clone() }, run];
            let title = "load of it, gzip, then the first run".to_owned();
            let workload = self.workload("transfer/load-run", title, Start::Fresh, tasks);
            self.workloads.push(Workload { images: Vec::new(), ..workload });
        }
        for (form, tar) in
            [("plain", &debian.rootfs), ("gzip", &debian.rootfs_gzip), ("zstd", &debian.rootfs_zstd)]
        {
            let name = format!("transfer/import-{form}");
            if wanted(&name) {
                let task = Task::Import { tar: tar.clone(), name: "imported".to_owned() };
                let title = format!("import of a Debian root ({bytes} MB), {form}");
                let workload = self.workload(&name, title, Start::Fresh, vec![task]);
                self.workloads.push(Workload { images: Vec::new(), ..workload });
            }
        }
        if wanted("transfer/save-plain") {
            let to = self.place.join("saved").join("image.tar");
            let task = Task::Save { image: "debian".to_owned(), to, compression: Compression::None };
            let title = format!("save of a Debian root ({bytes} MB), uncompressed");
            let start = Start::Kept("transfer/save".to_owned());
            let workload = self.workload("transfer/save-plain", title, start, vec![task]);
            self.workloads.push(Workload { images: vec![debian], ..workload });
        }
        self.saves_of_a_build(wanted)
    }

    fn loads_by_size(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let files = self.inputs.sizes.tree;
        for count in [files / 100, files / 10, files] {
            let name = format!("transfer/load-files-{count}");
            if wanted(&name) {
                let task = Task::Load { archive: self.inputs.tree_image(count)?.gzip };
                let title = format!("load of an image of {} files, gzip", grouped(count));
                let workload = self.workload(&name, title, Start::Fresh, vec![task]);
                let growth = Some((LOAD_FILES, count));
                self.workloads.push(Workload { growth, images: Vec::new(), ..workload });
            }
        }
        for count in LAYERS {
            let name = format!("transfer/load-layers-{count}");
            if wanted(&name) {
                let task = Task::Load { archive: self.inputs.many_layers(count)? };
                let title = format!("load of an image of {}", plural(count, "layer"));
                let workload = self.workload(&name, title, Start::Fresh, vec![task]);
                let growth = Some((LOAD_LAYERS, count));
                self.workloads.push(Workload { growth, images: Vec::new(), ..workload });
            }
        }
        Ok(())
    }

    /// A layer that came from outside goes out as it came; what a build made is compressed as asked for.
    fn saves_of_a_build(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let count = self.inputs.sizes.tree;
        for (form, compression) in
            [("plain", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)]
        {
            let name = format!("transfer/save-tree-{form}");
            if !wanted(&name) {
                continue;
            }
            let build = self.build(
                "transfer/save-tree",
                self.inputs.tree(count)?,
                "FROM busybox\nCOPY tree /tree\n",
            )?;
            let Task::Build { tag, .. } = &build else { continue };
            let to = self.place.join("saved").join("image.tar");
            let task = Task::Save { image: tag.clone(), to, compression };
            let title = format!("save of an image with a COPY of {} files, {form}", grouped(count));
            // What was compressed once is remembered.
            let start = match compression {
                Compression::None => Start::Kept("transfer/save-tree".to_owned()),
                Compression::Gzip | Compression::Zstd => Start::Fresh,
            };
            let workload = self.workload(&name, title, start, vec![task]);
            self.workloads.push(Workload { before: vec![build], ..workload });
        }
        Ok(())
    }

    fn containers(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        if wanted("container/run") {
            let task = Task::Run { image: "busybox".to_owned(), words: vec!["/bin/true".to_owned()] };
            let title = "run --rm of a program that exits at once".to_owned();
            let start = Start::Kept("container/run".to_owned());
            self.workloads.push(self.workload("container/run", title, start, vec![task]));
        }
        for count in LAYERS {
            let name = format!("container/run-layers-{count}");
            if wanted(&name) {
                let task = Task::Run { image: "layers".to_owned(), words: vec!["/bin/true".to_owned()] };
                let title = format!("run --rm of an image of {}", plural(count, "layer"));
                let workload = self.workload(&name, title, Start::Kept(name.clone()), vec![task]);
                let before = vec![Task::Load { archive: self.inputs.many_layers(count)? }];
                let growth = Some((RUN_LAYERS, count));
                self.workloads.push(Workload { growth, before, images: Vec::new(), ..workload });
            }
        }
        Ok(())
    }

    fn queries(&mut self, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let images = self.inputs.sizes.images;
        for count in [images / 100, images / 10, images] {
            let image = || format!("many:{}", count - 1);
            let mut questions = vec![("images", Task::Images)];
            if count == images {
                questions.extend([
                    ("history", Task::History { image: image() }),
                    ("inspect", Task::Inspect { image: image() }),
                    ("df", Task::DiskUsage),
                    ("prune", Task::Prune),
                ]);
            }
            for (what, task) in questions {
                let name = format!("queries/{what}-{count}");
                if !wanted(&name) {
                    continue;
                }
                let title = format!("{} on {}", asked(what), plural(count, "image"));
                let before = vec![Task::Load { archive: self.inputs.many_images(count)? }];
                let start = Start::Kept(format!("images-{count}"));
                let growth = (what == "images").then_some((LIST_IMAGES, count));
                let workload = self.workload(&name, title, start, vec![task]);
                self.workloads.push(Workload { before, growth, images: Vec::new(), ..workload });
            }
        }
        if wanted("start/version") {
            let start = Start::Kept("start".to_owned());
            self.workloads.push(self.workload(
                "start/version",
                "version".to_owned(),
                start,
                vec![Task::Version],
            ));
        }
        Ok(())
    }
}

fn asked(what: &str) -> &str {
    match what {
        "inspect" => "image inspect",
        "df" => "system df",
        "prune" => "image prune that finds nothing",
        other => other,
    }
}

/// A Dockerfile of `count` steps, RUN and ENV in turn, since docker mounts no more than 125 layers.
fn stepped(first: &str, count: usize) -> String {
    let mut text = first.to_owned();
    for number in 0..count {
        text.push_str(&if number % 2 == 0 {
            format!("RUN echo {number} > /step-{number}\n")
        } else {
            format!("ENV STEP_{number}={number}\n")
        });
    }
    text
}

fn plural(count: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// 20,000
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_alternate() {
        assert_eq!(
            stepped("FROM a\n", 3),
            "FROM a\nRUN echo 0 > /step-0\nENV STEP_1=1\nRUN echo 2 > /step-2\n"
        );
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(200_000), "200,000");
        assert_eq!(plural(1, "step"), "1 step");
    }
}
