"""Tests of the harness itself: `python3 corpus/test_harness.py`."""

import io
import json
import pathlib
import sys
import tarfile
import tempfile
import unittest

sys.dont_write_bytecode = True
import harness


def layer(*entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            harness.add_member(archive, entry, 0)
    return harness.read_layer(buffer.getvalue())


def tree_of(*layers):
    tree = {}
    for entries in layers:
        tree = harness.apply_layer(tree, harness.resolve_links(entries, tree))
    return harness.settled_links(tree)


BELOW = layer({"path": "d", "type": "dir"}, {"path": "d/a", "content": "a"}, {"path": "d/b", "content": "b"})


class Whiteouts(unittest.TestCase):
    def test_opaque_and_single_whiteouts_give_the_same_facts(self):
        opaque = layer({"path": "d", "type": "dir"}, {"path": "d/.wh..wh..opq"}, {"path": "d/n"})
        single = layer({"path": "d", "type": "dir"}, {"path": "d/.wh.a"}, {"path": "d/.wh.b"}, {"path": "d/n"})
        lower = tree_of(BELOW)
        facts = [harness.layer_facts(harness.resolve_links(e, lower), lower, {}) for e in (opaque, single)]
        self.assertEqual(facts[0], facts[1])
        self.assertEqual(facts[0]["removed"], ["/d/a", "/d/b"])

    def test_opaque_hides_only_what_lies_below_wherever_it_stands(self):
        late = layer({"path": "d", "type": "dir"}, {"path": "d/n"}, {"path": "d/.wh..wh..opq"})
        self.assertEqual(sorted(tree_of(BELOW, late)), ["/d", "/d/n"])

    def test_whiteout_over_nothing_is_idle(self):
        lower = tree_of(BELOW)
        facts = harness.layer_facts(layer({"path": "d/.wh.none"}), lower, {})
        self.assertEqual((facts["idle"], facts["removed"]), (["/d/.wh.none"], []))

    def test_file_takes_the_place_of_a_directory(self):
        self.assertEqual(sorted(tree_of(BELOW, layer({"path": "d", "content": "file"}))), ["/d"])

    def test_only_the_top_of_what_vanished_is_named(self):
        lower = tree_of(BELOW)
        self.assertEqual(harness.layer_facts(layer({"path": ".wh.d"}), lower, {})["removed"], ["/d"])


class Links(unittest.TestCase):
    LINKED = layer({"path": "a", "content": "x"}, {"path": "b", "type": "hardlink", "target": "a"})

    def test_group_names_all_members(self):
        self.assertEqual(tree_of(self.LINKED)["/b"]["links"], ["/a", "/b"])

    def test_group_shrinks_when_a_name_gets_another_file(self):
        tree = tree_of(self.LINKED, layer({"path": "b", "content": "y"}))
        self.assertNotIn("links", tree["/a"])

    def test_link_into_a_lower_layer_has_the_lower_content(self):
        tree = tree_of(layer({"path": "a", "content": "x"}), layer({"path": "b", "type": "hardlink", "target": "a"}))
        self.assertEqual(tree["/b"]["text"], "x")


class Entries(unittest.TestCase):
    def test_equal_entry_is_touched_and_other_mode_is_changed(self):
        lower = tree_of(BELOW)
        same = harness.layer_facts(layer({"path": "d/a", "content": "a", "mtime": 5}), lower, {})
        other = harness.layer_facts(layer({"path": "d/a", "content": "a", "mode": "600"}), lower, {})
        self.assertEqual((same["touched"], list(other["changed"])), (["/d/a"], ["/d/a"]))

    def test_leading_dot_slash_means_nothing(self):
        self.assertEqual(list(layer({"path": "./x", "content": ""}, {"path": "/y", "content": ""})), ["/x", "/y"])

    def test_binary_attribute_is_hexadecimal(self):
        entries = layer({"path": "x", "xattrs": {"security.capability": "\u0001\u0000"}})
        self.assertEqual(entries["/x"]["xattrs"], {"security.capability": "hex:0100"})


class Corpus(unittest.TestCase):
    def test_every_case_is_complete(self):
        bases = json.loads((harness.CORPUS / "bases.json").read_text())
        for name in harness.selected_names([]):
            with self.subTest(name):
                case = harness.read_case(name)
                expected = json.loads((harness.CORPUS / name / "expected.json").read_text())
                self.assertEqual(expected["result"] == "error", "error" in case)
                self.assertLessEqual(set(case.get("bases", [])), set(bases))

    def test_known_differences_name_cases(self):
        known = json.loads((harness.CORPUS / "known-differences.json").read_text())
        self.assertLessEqual(set(known), set(harness.selected_names([])))
        for name, entry in known.items():
            self.assertEqual(set(entry), {"reason", "where"}, name)

    def test_context_does_not_hold_the_harness_own_files(self):
        with tempfile.TemporaryDirectory() as folder:
            harness.materialise_context("copy-mtimes", folder)
            found = {p.name for p in pathlib.Path(folder).iterdir()}
        self.assertEqual(found, {"Dockerfile", "a", "d", "s"})


if __name__ == "__main__":
    unittest.main()
