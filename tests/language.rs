//! Comments, messages and documentation stay in plain technical English: turns of phrase that made readers stop fail here.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::fs;
use std::path::{Path, PathBuf};

/// Lower case, as they stand in a line.
const PHRASES: [&str; 19] = [
    "whoever",
    "gone on with",
    "goes on with",
    " be had",
    " is had",
    " was had",
    "in vain",
    "nobody is harmed",
    "makes of it",
    "make of it",
    "becomes of",
    "became of",
    "comes to nothing",
    "what it is worth",
    "no means for",
    "who asks",
    "who comes",
    ", be it ",
    "as far as it goes",
];

#[test]
fn the_text_has_none_of_the_phrases_that_make_readers_stop() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for entry in [
        "src",
        "sys",
        "lab",
        "tests",
        "docs",
        "packaging",
        "scripts",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        let path = root.join(entry);
        assert!(path.exists(), "{entry} is gone: change the list");
        for file in texts(&path) {
            // This list has them all.
            if file.ends_with("tests/language.rs") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap().to_lowercase();
            for (number, line) in text.lines().enumerate() {
                let phrases = PHRASES.iter().filter(|phrase| line.contains(*phrase));
                found.extend(phrases.map(|phrase| format!("{}:{}: {phrase:?}", file.display(), number + 1)));
            }
        }
    }
    assert!(found.is_empty(), "write these in plain English: {found:#?}");
}

/// The texts in a folder, or the file itself.
fn texts(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    let files = entries.flat_map(|entry| texts(&entry.unwrap().path()));
    files
        .filter(|file| {
            file.extension().is_some_and(|end| {
                ["rs", "md", "toml", "in", "8", "5", "service"].iter().any(|text| end == *text)
            })
        })
        .collect()
}
