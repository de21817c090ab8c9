//! Rows of `history`.

use jiff::Timestamp;

use crate::format::{Defaults, Fields, Layout, Row};
use crate::units::{Clock, ellipsis, short_id, short_size};

/// Columns of CREATED BY unless everything is wanted.
const CREATED_BY: usize = 45;

/// One entry of an image's history, the newest first.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// The image ID of the newest entry; others have none and show `<missing>`.
    pub(crate) id: Option<String>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) created_by: String,
    /// Bytes of its layer, 0 where it has none.
    pub(crate) size: u64,
    pub(crate) comment: String,
}

/// What `history` was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryStyle<'a> {
    pub(crate) format: Option<&'a str>,
    pub(crate) quiet: bool,
    pub(crate) full: bool,
    /// Ages and rounded sizes; else times and bytes.
    pub(crate) human: bool,
}

const TABLE: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const EXACT_TABLE: &str = "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

impl HistoryStyle<'_> {
    /// The layout that these flags give.
    pub(crate) fn layout(&self) -> Layout {
        if self.quiet && matches!(self.format, None | Some("table")) {
            return Layout::Rows("{{.ID}}".to_owned());
        }
        let table = if self.human { TABLE } else { EXACT_TABLE };
        Layout::read(self.format, Defaults { table, raw: "raw" })
    }

    /// The rows, ready to be laid out.
    pub(crate) fn rows(&self, steps: &[Step], clock: &Clock) -> Vec<StepRow> {
        let row = |step: &Step| {
            let at = step.created.map(|time| clock.rfc3339(time)).unwrap_or_default();
            let created_by = step.created_by.replace('\t', " ");
            let id = step.id.as_deref().unwrap_or("<missing>");
            StepRow {
                id: if self.full { id.to_owned() } else { short_id(id).to_owned() },
                since: match step.created {
                    _ if !self.human => at.clone(),
                    // Times clamped to SOURCE_DATE_EPOCH=0 and the like say nothing about age.
                    Some(time) if time.as_second() > 946_684_800 => clock.since(time),
                    _ => "N/A".to_owned(),
                },
                at,
                created_by: if self.full { created_by } else { ellipsis(&created_by, CREATED_BY) },
                size: if self.human { short_size(step.size) } else { step.size.to_string() },
                comment: step.comment.clone(),
            }
        };
        steps.iter().map(row).collect()
    }
}

/// A step with its texts.
#[derive(Debug, Clone)]
pub(crate) struct StepRow {
    id: String,
    since: String,
    at: String,
    created_by: String,
    size: String,
    comment: String,
}

impl Row for StepRow {
    const SUBJECT: &'static str = "a step of a history";
    const HEADERS: &'static [(&'static str, &'static str)] = &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ];

    fn fill(&self, fields: &mut Fields<'_>) {
        fields.add("Comment", || self.comment.clone());
        fields.add("CreatedAt", || self.at.clone());
        fields.add("CreatedBy", || self.created_by.clone());
        fields.add("CreatedSince", || self.since.clone());
        fields.add("ID", || self.id.clone());
        fields.add("Size", || self.size.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    const DEFAULT: HistoryStyle<'_> = HistoryStyle { format: None, quiet: false, full: false, human: true };

    fn steps() -> Vec<Step> {
        let step = |created: &str, created_by: &str, size, comment: &str| Step {
            id: None,
            created: created.parse().ok(),
            created_by: created_by.to_owned(),
            size,
            comment: comment.to_owned(),
        };
        let mut steps = vec![
            step("2026-11-21T06:15:37.1Z", "CMD [\"cat /opt/hello.txt\"]", 0, "buildkit.dockerfile.v0"),
            step(
                "2026-11-21T06:15:37Z",
                "ENV GREETING=hello LONG=a value with spaces and quite some length",
                0,
                "",
            ),
            step(
                "2026-11-21T06:15:36Z",
                "RUN /bin/sh -c echo \"layer1\" > /layer1.txt # buildkit",
                7,
                "buildkit.dockerfile.v0",
            ),
            step("2026-11-21T06:14:03Z", "", 7_797_760, "Imported from -"),
            step("1970-01-01T00:00:00Z", "RUN <<EOF\n\techo\nEOF", 12, "old"),
        ];
        steps[0].id = Some(format!("sha256:0f7396cbbc2a{}", "0".repeat(52)));
        steps
    }

    #[track_caller]
    fn check(style: HistoryStyle<'_>, expect: &str) {
        let clock = Clock { now: "2026-11-21T06:15:42Z".parse().unwrap(), zone: TimeZone::UTC };
        assert_eq!(style.layout().render(&style.rows(&steps(), &clock)).unwrap(), expect);
    }

    #[test]
    fn tables() {
        check(
            DEFAULT,
            "IMAGE          CREATED              CREATED BY                                      SIZE      COMMENT\n\
             0f7396cbbc2a   5 seconds ago        CMD [\"cat /opt/hello.txt\"]                      0B        buildkit.dockerfile.v0\n\
             <missing>      5 seconds ago        ENV GREETING=hello LONG=a value with spaces …   0B        \n\
             <missing>      6 seconds ago        RUN /bin/sh -c echo \"layer1\" > /layer1.txt #…   7B        buildkit.dockerfile.v0\n\
             <missing>      About a minute ago                                                   7.8MB     Imported from -\n\
             <missing>      N/A                  RUN <<EOF  echo EOF                             12B       old\n",
        );
        check(
            HistoryStyle {
                human: false,
                format: Some("table {{.CreatedAt}}\t{{.CreatedSince}}\t{{.Size}}"),
                ..DEFAULT
            },
            "CREATED AT             CREATED                SIZE\n\
             2026-11-21T06:15:37Z   2026-11-21T06:15:37Z   0\n\
             2026-11-21T06:15:37Z   2026-11-21T06:15:37Z   0\n\
             2026-11-21T06:15:36Z   2026-11-21T06:15:36Z   7\n\
             2026-11-21T06:14:03Z   2026-11-21T06:14:03Z   7797760\n\
             1970-01-01T00:00:00Z   1970-01-01T00:00:00Z   12\n",
        );
    }

    #[test]
    fn lines() {
        check(
            HistoryStyle { quiet: true, ..DEFAULT },
            "0f7396cbbc2a\n<missing>\n<missing>\n<missing>\n<missing>\n",
        );
        check(
            HistoryStyle { format: Some("{{json .CreatedBy}}"), full: true, ..DEFAULT },
            "\"CMD [\\\"cat /opt/hello.txt\\\"]\"\n\
             \"ENV GREETING=hello LONG=a value with spaces and quite some length\"\n\
             \"RUN /bin/sh -c echo \\\"layer1\\\" > /layer1.txt # buildkit\"\n\
             \"\"\n\
             \"RUN <<EOF\\n echo\\nEOF\"\n",
        );
    }
}
