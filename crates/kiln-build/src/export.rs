//! The image config of a finished build: layers, history and times, by BuildKit's rules.

use kiln_graph::VertexId;
use kiln_oci::{DiffId, History, ImageConfig};

use crate::stage::PlannedHistory;

/// The comment of history entries for layers that the base's history does not account for.
const UNACCOUNTED_COMMENT: &str = "buildkit.exporter.image.v0";

/// Completes a config.
///
/// `made` gives for a vertex when its layer was first made, in nanoseconds since the epoch. Times follow
/// BuildKit's exporter: a layer's entry has its layer's time; an entry without a layer has the time of the
/// nearest new layer; `created` is the last time there is.
pub(crate) fn finish(
    mut image: ImageConfig,
    base_layers: usize,
    planned: &[PlannedHistory],
    layers: &[DiffId],
    made: impl Fn(VertexId) -> Option<i64>,
) -> ImageConfig {
    let mut history = std::mem::take(&mut image.history);
    account_for_base(&mut history, base_layers);
    for plan in planned {
        let mut entry = plan.entry.clone();
        if entry.created.is_none() {
            entry.created = plan.layer.and_then(&made).map(format_nanoseconds);
        }
        history.push(entry);
    }
    fill_in_times(&mut history);
    image.created = history.iter().rev().find_map(|entry| entry.created.clone());
    image.history = history;
    image.rootfs.diff_ids = layers.to_vec();
    image
}

/// Makes the base's history name exactly the base's layers.
fn account_for_base(history: &mut Vec<History>, layers: usize) {
    let mut named = 0;
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        named += 1;
        entry.empty_layer = named > layers;
    }
    for _ in named..layers {
        history.push(History { comment: UNACCOUNTED_COMMENT.to_owned(), ..History::default() });
    }
}

fn fill_in_times(history: &mut [History]) {
    let mut created = None;
    let mut missing = false;
    for entry in history.iter() {
        match &entry.created {
            Some(time) => {
                created = Some(time.clone());
                if missing {
                    break;
                }
            }
            None => missing = true,
        }
    }
    missing = false;
    for entry in history.iter_mut() {
        match &entry.created {
            Some(time) if missing => created = Some(time.clone()),
            Some(_) => {}
            None => {
                missing = true;
                entry.created.clone_from(&created);
            }
        }
    }
}

/// RFC 3339 with as many digits of a second as are needed, as Go writes it.
pub(crate) fn format_nanoseconds(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map_or_else(|_| String::new(), |time| time.to_string())
}

/// As [`format_nanoseconds`], of whole seconds.
pub(crate) fn format_seconds(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(times: &[Option<&str>], expect: &[Option<&str>]) {
        let mut history: Vec<History> = times
            .iter()
            .map(|time| History { created: time.map(str::to_owned), ..History::default() })
            .collect();
        fill_in_times(&mut history);
        let found: Vec<Option<&str>> = history.iter().map(|entry| entry.created.as_deref()).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn times_are_filled_in_from_the_nearest_new_layer() {
        check(&[Some("1"), None, Some("2"), None], &[Some("1"), Some("2"), Some("2"), Some("2")]);
        check(&[Some("1"), None], &[Some("1"), Some("1")]);
        check(&[None, Some("2"), Some("3"), None], &[Some("2"), Some("2"), Some("3"), Some("3")]);
        check(&[None, None], &[None, None]);
    }

    #[test]
    fn a_base_without_history_gets_one() {
        let mut history = vec![History { empty_layer: true, ..History::default() }];
        account_for_base(&mut history, 2);
        assert_eq!(history.iter().filter(|entry| !entry.empty_layer).count(), 2);
        account_for_base(&mut history, 1);
        assert_eq!(history.iter().filter(|entry| !entry.empty_layer).count(), 1);
    }

    #[test]
    fn times_are_written_as_go_does() {
        assert_eq!(format_seconds(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_nanoseconds(1_500_000_000), "1970-01-01T00:00:01.5Z");
    }
}
