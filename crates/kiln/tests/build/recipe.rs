//! A Dockerfile made by chance. Everything it does is a function of the base image, the context and the build arguments.

use crate::dice::Dice;

/// Where a RUN looks around.
const PLACES: [&str; 11] = ["/w", "/w", "/d", "/t", "/x", "/all", "/o", "/par", "/etc", "/own", "/added"];

/// A Dockerfile whose last stage is the image.
#[derive(Clone)]
pub(crate) struct Recipe {
    stages: Vec<Stage>,
    /// Numbers of files that were promised.
    outputs: usize,
}

#[derive(Clone)]
struct Stage {
    base: String,
    lines: Vec<String>,
}

impl Recipe {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let mut recipe = Self { stages: Vec::new(), outputs: 0 };
        for index in 0..1 + dice.below(3) {
            let base =
                if index > 0 && dice.one_in(3) { format!("s{}", dice.below(index)) } else { "bb".to_owned() };
            let prelude = ["ARG SOURCE=a", "WORKDIR /w", "RUN mkdir -p /d /t && echo k > /t/k.txt"];
            recipe.stages.push(Stage { base, lines: prelude.map(str::to_owned).to_vec() });
            for _ in 0..2 + dice.below(5) {
                let line = recipe.line(dice, index);
                recipe.stages[index].lines.push(line);
            }
        }
        recipe
    }

    /// The Dockerfile.
    pub(crate) fn text(&self) -> String {
        let mut text = "# syntax=docker/dockerfile:1-labs\n".to_owned();
        for (index, stage) in self.stages.iter().enumerate() {
            text.push_str(&format!("FROM {} AS s{index}\n{}\n", stage.base, stage.lines.join("\n")));
        }
        text
    }

    /// Changes one line, and says how.
    pub(crate) fn edit(&mut self, dice: &mut Dice) -> String {
        let index = dice.below(self.stages.len());
        let line = self.line(dice, index);
        let lines = &mut self.stages[index].lines;
        let at = dice.below(lines.len());
        match dice.below(4) {
            0 if lines.len() > 3 => format!("line of s{index} gone: {}", lines.remove(at)),
            1 => {
                lines.insert(at, line.clone());
                format!("line of s{index} new: {line}")
            }
            2 if at > 0 => {
                lines.swap(at, at - 1);
                format!("line of s{index} one up: {}", lines[at - 1])
            }
            _ => {
                lines[at].clone_from(&line);
                format!("line of s{index} replaced: {line}")
            }
        }
    }

    /// Takes something new from the context at the end.
    pub(crate) fn take_from_context(&mut self, dice: &mut Dice) {
        let output = self.output();
        let line = match dice.below(4) {
            0 => format!("COPY . {output}/"),
            1 => format!(
                "RUN --mount=type=bind,target=/m cat /m/tar /m/a /m/b.txt /m/d/a /m/d/e/c 2>/dev/null | md5sum > {output}"
            ),
            _ => format!("ADD tar {output}/"),
        };
        if let Some(stage) = self.stages.last_mut() {
            stage.lines.push(line);
        }
    }

    fn line(&mut self, dice: &mut Dice, stage: usize) -> String {
        match dice.below(10) {
            0..=3 => copy_from_context(dice).to_owned(),
            4 => copy_from_stage(dice, stage),
            5 | 6 => self.look_around(dice, stage),
            7 => change_files(dice).to_owned(),
            8 => self.show_variables(dice),
            _ => setting(dice).to_owned(),
        }
    }

    /// The next place for what a RUN saw.
    fn output(&mut self) -> String {
        self.outputs += 1;
        format!("/obs/{}", self.outputs)
    }

    /// A RUN that writes down all that it sees: names, modes, owners, links, content.
    fn look_around(&mut self, dice: &mut Dice, stage: usize) -> String {
        let from = origin(dice, stage);
        let (mount, place) = match dice.below(8) {
            0 => ("--mount=type=bind,target=/m ".to_owned(), "/m"),
            1 => ("--mount=type=bind,source=d,target=/m ".to_owned(), "/m"),
            2 => ("--mount=type=bind,source=a,target=/m/a ".to_owned(), "/m"),
            3 => (format!("--mount=type=bind,from={from},target=/m,source=/etc "), "/m"),
            4 if stage > 0 => (format!("--mount=type=bind,from=s{},target=/m,source=/w ", stage - 1), "/m"),
            5 => ("--mount=type=bind,source=d,target=/m,rw touch /m/new; ".to_owned(), "/m"),
            _ => (String::new(), dice.pick(&PLACES)),
        };
        let output = self.output();
        format!(
            "RUN {mount}cd {place} 2>/dev/null || exit 0; find . | sort | while IFS= read -r p; do \
             stat -c '%A %u %g %N' \"$p\"; [ -L \"$p\" ] || [ ! -f \"$p\" ] || md5sum \"$p\"; done > {output}"
        )
    }

    fn show_variables(&mut self, dice: &mut Dice) -> String {
        if dice.one_in(4) {
            // One that is not declared may be seen without being in a key.
            return format!("ARG HTTP_PROXY\nRUN echo \"$HTTP_PROXY\" > {}", self.output());
        }
        let shown = dice.pick(&["$A", "$A-$B", "$SOURCE", "$B$PWD", "${A:-none}"]);
        format!("RUN echo \"{shown}\" > {}", self.output())
    }
}

/// An earlier stage, or the base image.
fn origin(dice: &mut Dice, stage: usize) -> String {
    if stage == 0 || dice.one_in(6) { "bb".to_owned() } else { format!("s{}", dice.below(stage)) }
}

fn copy_from_context(dice: &mut Dice) -> &'static str {
    dice.pick(&[
        "COPY . .",
        "COPY . /all/",
        "COPY d /d",
        "COPY d/ /x/",
        "COPY d/e /d/e",
        "COPY *.txt /t/",
        "COPY a b.txt /x/",
        "COPY d/* /t/",
        "COPY ?.txt d/b* /w/",
        "COPY --chmod=640 a /own/a",
        "COPY --chmod=u+x,go-rwx d /own/d",
        "COPY --chown=3:4 d /own",
        "COPY --link a /own/l",
        "COPY --link d /x/",
        "COPY --exclude=*.txt d /x/",
        "COPY --exclude=d/e --exclude=a . /all",
        "COPY --parents d/e/c d/*.txt /par/",
        "COPY --parents **/*.txt /par/",
        "COPY [\"s p\", \"/t/s p\"]",
        "COPY ${SOURCE} /src/",
        "COPY $SOURCE /w/given",
        "ADD a /t/",
        "ADD tar /t/",
        "ADD tar /added/",
        "ADD t* /w/",
        "ADD d /t/d",
        "COPY <<END /w/here\n$A $B text\nEND",
    ])
}

fn copy_from_stage(dice: &mut Dice, stage: usize) -> String {
    let from = origin(dice, stage);
    let what = if from == "bb" {
        dice.pick(&["/etc/passwd /t/passwd", "/etc /o/etc", "/bin/sh /o/"])
    } else {
        dice.pick(&[
            "/w /o/",
            "/obs /o/",
            "/d/ /o/d",
            "/t/*.txt /o/",
            "/t /d /w /o/all/",
            "/w/ /w",
            "/obs/ /w/",
            "/ /o/root",
        ])
    };
    let flags = dice.pick(&["", "", "", "--link ", "--chown=5:6 ", "--chmod=755 ", "--exclude=**/*.txt "]);
    format!("COPY --from={from} {flags}{what}")
}

fn change_files(dice: &mut Dice) -> &'static str {
    dice.pick(&[
        "RUN ln -f /w/a /w/hard 2>/dev/null; true",
        "RUN ln -f /d/a /w/hard 2>/dev/null; true",
        "RUN ln -sf a /w/link",
        "RUN rm -rf /d/e /t/d",
        "RUN rm -rf /w/d && mkdir -p /w/d && echo new > /w/d/new",
        "RUN rm -f /w/a /w/given",
        "RUN echo more >> /w/more",
        "RUN [ ! -f /w/a ] || echo more >> /w/a",
        "RUN chmod 700 /w/b.txt 2>/dev/null; true",
        "RUN chmod 700 /d /t 2>/dev/null; true",
        "RUN mv /w/d/e /w/moved 2>/dev/null; true",
        "RUN touch /w/a /d/a",
        "RUN --mount=type=cache,target=/c echo x >> /c/log; echo cached > /t/c.txt",
        "RUN --mount=type=tmpfs,target=/d/tmp echo x > /d/tmp/x",
        "RUN cat a > /t/a.txt 2>/dev/null; true",
        "RUN true",
    ])
}

fn setting(dice: &mut Dice) -> &'static str {
    dice.pick(&[
        "ARG A",
        "ARG A=9",
        "ARG SOURCE=a",
        "ARG SOURCE=d",
        "ENV A=$SOURCE",
        "ENV B=1",
        "ENV B=$A",
        "WORKDIR /w",
        "WORKDIR sub",
        "WORKDIR /w/$A",
        "LABEL x=$A",
        "USER 5\nWORKDIR /u/made\nUSER 0",
        "SHELL [\"/bin/sh\", \"-ec\"]",
    ])
}
