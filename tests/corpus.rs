//! Every file of every corpus through the body that a fuzzer runs, cut at every place, under an
//! allocator that counts.
// The corpora of the chunk protocol, of object stores, of clouds and of encrypted images are among
// them.
#![cfg(all(
    feature = "testing",
    feature = "peer",
    feature = "object",
    feature = "clouds",
    feature = "encrypt"
))]
#![expect(clippy::print_stdout, reason = "names the file that fails, and tells figures")]

mod heap;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use blockferry::testing::fuzz::{BODIES, Body, Effort};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

#[test]
fn every_corpus_file_holds() -> io::Result<()> {
    let mut files = 0;
    for body in BODIES {
        let mut most = 0;
        let inputs = inputs(body)?;
        for (path, bytes) in &inputs {
            // Named before it runs: a panic tells no file.
            println!("{}", path.display());
            let allowed = 2 * (body.window)(bytes.len());
            let peak = heap::peak_of(|| (body.run)(bytes, Effort::Thorough));
            assert!(peak <= allowed, "{}: {peak} of {allowed} bytes", path.display());
            most = most.max(peak);
        }
        println!("{}: {} files, at most {most} bytes of heap", body.name, inputs.len());
        files += inputs.len();
    }
    println!("corpus: {files} files");
    Ok(())
}

#[test]
fn every_body_has_a_target_and_a_corpus_and_every_target_a_body() -> io::Result<()> {
    let names: BTreeSet<String> = BODIES.iter().map(|body| body.name.to_owned()).collect();
    assert_eq!(names.len(), BODIES.len(), "two bodies of one name");
    assert_eq!(names, listed("corpus")?, "folders below fuzz/corpus");
    let targets = listed("fuzz_targets")?;
    let targets = targets.iter().map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    assert_eq!(names, targets, "files below fuzz/fuzz_targets");
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml"))?;
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml: no {name}");
    }
    Ok(())
}

/// What the crate's own writers make passes its own bodies, also before it is in a corpus.
#[test]
fn every_seed_holds() {
    for body in BODIES {
        let seeds = (body.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", body.name);
        seeds.iter().for_each(|seed| (body.run)(seed, Effort::Thorough));
    }
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn listed(folder: &str) -> io::Result<BTreeSet<String>> {
    let entries = fs::read_dir(fuzz().join(folder))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn inputs(body: &Body) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for name in listed(&format!("corpus/{}", body.name))? {
        let path = fuzz().join("corpus").join(body.name).join(name);
        inputs.push((path.clone(), fs::read(path)?));
    }
    assert!(!inputs.is_empty(), "the corpus of {} is empty", body.name);
    Ok(inputs)
}
