//! Fixed work for `cargo xtask count`: the keys of four thousand operations.

use kiln_graph::{Input, Operation, Preimage};
use kiln_oci::Digest;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut keys = std::collections::BTreeSet::new();
    for number in 0..4000_u32 {
        let input = |name: &str, seed: u32| Input {
            name: name.to_owned(),
            selector: "src/**/*.rs".to_owned(),
            digest: Digest::of(&seed.to_le_bytes()),
        };
        let operation = Operation::new("run", 1, "linux/amd64")
            .with("arguments", format!("make step-{number}"))
            .with("directory", "/src")
            .with("network", "default")
            .with("user", "1000:1000");
        let preimage =
            Preimage { operation, inputs: vec![input("root", number), input("source", number / 7)] };
        let read = Preimage::from_stored(&preimage.operation.to_text(), &preimage.inputs_to_bytes())?;
        if read.key() != preimage.key() {
            return Err("a key changes when it is stored".into());
        }
        keys.insert(*preimage.key().as_bytes());
    }
    if keys.len() == 4000 { Ok(()) } else { Err("two operations have one key".into()) }
}
