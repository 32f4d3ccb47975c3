//! The laws of the house as checks over its files: shape, purity, seams, arrows, forbidden words.
//!
//! A law is a function from one file to the list of its breaches, so that each can be shown a bad
//! file at the foot of this one. Laws read tokens, never raw text, wherever a string or a comment
//! could fool them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

const COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const ARROWS_PATH: &str = "src/manual/architecture.md";
const GUARANTEES_PATH: &str = "src/manual/guarantees.md";

/// No I/O, no clock, no randomness, no async: they say so in their first paragraph.
const PURE_ROOMS: [&str; 60] = [
    "chunk",
    "cipher",
    "clouds/alibaba/asked",
    "clouds/alibaba/faults",
    "clouds/baidu/asked",
    "clouds/baidu/faults",
    "clouds/calendar",
    "clouds/config",
    "clouds/huawei/asked",
    "clouds/huawei/faults",
    "clouds/keys",
    "clouds/metrics",
    "clouds/nonce",
    "clouds/rate",
    "clouds/reply",
    "clouds/request",
    "clouds/sign",
    "clouds/text",
    "codec",
    "compress",
    "engine/retry",
    "engine/state",
    "error",
    "geometry",
    "id",
    "job",
    "journal/record",
    "journal/recovery",
    "journal/slot",
    "keys/ring",
    "location",
    "manifest",
    "options",
    "peer/admission",
    "peer/identity",
    "peer/min_rate",
    "peer/policy",
    "plan",
    "region/object/gather",
    "region/object/head",
    "region/object/image",
    "region/object/names",
    "region/object/notes",
    "region/object/rules",
    "region/peer/call",
    "region/peer/page",
    "seal",
    "service/catalog",
    "service/event",
    "service/model",
    "service/names",
    "service/refusal",
    "service/status",
    "store/checksum",
    "store/s3/times",
    "store/s3/xml",
    "store/steady/pace",
    "store/trouble",
    "throttle",
    "wire",
];

const IMPURE: [&[&str]; 11] = [
    &["tokio"],
    &["tokio_util"],
    &["async"],
    &["await"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "thread"],
    &["rustix"],
    &["nix"],
    &["SystemTime"],
    &["Instant", "now"],
];

/// What only `disk` may do, so that the crash tests can stand in for the whole filesystem.
const DISK_ONLY: [&[&str]; 9] = [
    &["std", "fs"],
    &["tokio", "fs"],
    &["rustix", "fs"],
    &["rustix", "io"],
    &["nix"],
    &["OpenOptions"],
    &["File", "open"],
    &["File", "create"],
    &["File", "create_new"],
];

// ---- The laws ----

#[test]
fn lines_fit() -> io::Result<()> {
    judge("lines have at most 100 columns", &source_files(&["src"])?, long_lines)
}

#[test]
fn files_fit() -> io::Result<()> {
    judge("files have at most 500 lines before their tests", &source_files(&["src"])?, long_file)
}

#[test]
fn functions_fit() -> io::Result<()> {
    judge("functions have at most 70 lines", &source_files(&["src"])?, long_functions)
}

#[test]
fn first_line_says_what_lives_here() -> io::Result<()> {
    judge("a file opens with one sentence", &source_files(&["src"])?, opening)
}

#[test]
fn pure_rooms_are_pure() -> io::Result<()> {
    judge("pure rooms do no I/O and know no clock", &source_files(&["src"])?, impurities)
}

#[test]
fn failures_are_handled() -> io::Result<()> {
    judge("errors are neither ignored nor turned to panics", &source_files(&["src"])?, shortcuts)
}

#[test]
fn unsafe_stays_in_its_room() -> io::Result<()> {
    judge("only region/mmap.rs opens unsafe", &source_files(&["src"])?, unsafe_code)
}

#[test]
fn the_filesystem_is_behind_the_seam() -> io::Result<()> {
    judge("only disk touches the filesystem", &source_files(&["src"])?, past_the_seam)
}

#[test]
fn nothing_is_left_for_later() -> io::Result<()> {
    let files = source_files(&["src", "tests", "benches", "fuzz"])?;
    judge("no marker of unfinished work", &files, unfinished)
}

#[test]
fn ignored_tests_say_why() -> io::Result<()> {
    judge("every ignored test has a reason", &source_files(&["src", "tests"])?, silent_ignores)
}

#[test]
fn rooms_know_only_whom_they_may() -> io::Result<()> {
    let arrows = Arrows::parse(&fs::read_to_string(root().join(ARROWS_PATH))?);
    let files = source_files(&["src"])?;
    let rooms: BTreeSet<String> = files.iter().filter_map(|file| room(&file.path)).collect();
    judge("arrows are those of the manual", &files, |file| arrows.breaches(file, &rooms))
}

#[test]
fn proofs_exist() -> io::Result<()> {
    let text = fs::read_to_string(root().join(GUARANTEES_PATH))?;
    let manual = [Source::new(GUARANTEES_PATH, text)];
    judge("what the guarantees name as proof has tests", &manual, missing_proofs)
}

#[test]
fn no_machine_is_named() -> io::Result<()> {
    let files = all_texts()?;
    judge("no path or host of the machine it was written on", &files, machine_names)
}

/// Fails with every breach of the law in these files, one a line.
fn judge<F: Fn(&Source) -> Vec<String>>(name: &str, files: &[Source], law: F) -> io::Result<()> {
    assert!(!files.is_empty(), "{name}: no file was found to check");
    let breaches: Vec<String> = files.iter().flat_map(law).collect();
    assert!(
        breaches.is_empty(),
        "{name}; {} breach(es):\n  {}\n",
        breaches.len(),
        breaches.join("\n  ")
    );
    Ok(())
}

fn long_lines(file: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for (line, text) in numbered(&file.text) {
        let columns = text.chars().count();
        let table = ["//! |", "/// |"].iter().any(|row| text.trim_start().starts_with(row));
        // A URL cannot be broken, so it does not count; everything around it does.
        let urls: usize =
            text.split_whitespace().filter(|w| w.contains("://")).map(|w| w.chars().count()).sum();
        if columns - urls > COLUMNS_MAX && !table {
            breaches.push(file.at(line, format!("{columns} columns")));
        }
    }
    breaches
}

fn long_file(file: &Source) -> Vec<String> {
    let lines = file.text.lines().count() - file.test_lines;
    if lines > FILE_LINES_MAX && !file.path.starts_with("src/manual/") {
        return vec![file.at(1, format!("{lines} lines before its tests"))];
    }
    Vec::new()
}

fn long_functions(file: &Source) -> Vec<String> {
    functions(&file.code)
        .into_iter()
        .filter(|function| function.lines > FUNCTION_LINES_MAX)
        .map(|f| file.at(f.line, format!("fn {} has {} lines", f.name, f.lines)))
        .collect()
}

fn opening(file: &Source) -> Vec<String> {
    let paragraph: Vec<&str> =
        file.text.lines().map_while(|line| line.strip_prefix("//! ")).collect();
    let paragraph = paragraph.join(" ");
    let (sentence, pure) = match paragraph.strip_suffix(" Pure.") {
        Some(sentence) => (sentence, true),
        None => (paragraph.as_str(), false),
    };
    let next = sentence.split(". ").nth(1).and_then(|rest| rest.chars().next());
    let mut breaches = Vec::new();
    if sentence.is_empty() {
        breaches.push(file.at(1, "does not open with `//! ` and a sentence".into()));
    } else if !sentence.ends_with(['.', '?', '!']) {
        breaches.push(file.at(1, "its first sentence does not end".into()));
    } else if next.is_some_and(char::is_uppercase) {
        breaches.push(file.at(1, "its first paragraph is more than one sentence".into()));
    }
    match (pure, is_pure(&file.path)) {
        (true, false) => breaches.push(file.at(1, "says `Pure.` but tidy does not list it".into())),
        (false, true) => breaches.push(file.at(1, "a pure room, but does not say `Pure.`".into())),
        _ => {}
    }
    breaches
}

fn impurities(file: &Source) -> Vec<String> {
    if is_pure(&file.path) { mentions(file, &IMPURE) } else { Vec::new() }
}

fn past_the_seam(file: &Source) -> Vec<String> {
    let exempt = file.path.starts_with("src/bin/")
        || matches!(room(&file.path).as_deref(), Some("disk" | "testing"));
    if exempt { Vec::new() } else { mentions(file, &DISK_ONLY) }
}

fn shortcuts(file: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for (at, token) in file.code.iter().enumerate() {
        let word = |ahead: usize| file.code.get(at + ahead).map_or("", |token| token.text.as_str());
        let called = at > 0 && matches!(file.code[at - 1].text.as_str(), "." | "::");
        let found = match token.text.as_str() {
            "#" => match (word(1), word(2), word(3)) {
                ("[", "allow", _) | ("!", "[", "allow") => "`#[allow]`: use #[expect] and a reason",
                _ => continue,
            },
            "unwrap" | "unwrap_err" | "expect" | "expect_err" if called => "panics on an error",
            "panic" | "todo" | "dbg" | "unimplemented" if word(1) == "!" && word(2) != "=" => {
                "panics or prints"
            }
            "let" if word(1) == "_" && matches!(word(2), "=" | ":") => "drops a result unseen",
            _ => continue,
        };
        breaches.push(file.at(token.line, format!("`{}` {found}", token.text)));
    }
    breaches
}

fn unsafe_code(file: &Source) -> Vec<String> {
    if file.path == "src/region/mmap.rs" { Vec::new() } else { mentions(file, &[&["unsafe"]]) }
}

fn unfinished(file: &Source) -> Vec<String> {
    let markers = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut breaches = Vec::new();
    for (line, text) in numbered(&file.text) {
        let mut words = text.split(|c: char| !c.is_alphanumeric());
        if let Some(word) = words.find(|word| markers.iter().any(|marker| marker == word)) {
            breaches.push(file.at(line, format!("says {word}")));
        }
    }
    breaches
}

fn silent_ignores(file: &Source) -> Vec<String> {
    file.code_and_tests
        .windows(4)
        .filter(|window| {
            let words: Vec<&str> = window.iter().map(|token| token.text.as_str()).collect();
            words[..3] == ["#", "[", "ignore"] && words[3] != "="
        })
        .map(|window| file.at(window[0].line, "#[ignore] without a reason".into()))
        .collect()
}

fn machine_names(file: &Source) -> Vec<String> {
    // Put together here, so that this file does not name them either.
    let hosts = [
        ["index.crates", "io"],
        ["static.crates", "io"],
        ["pypi", "org"],
        ["pythonhosted", "org"],
        ["npmjs", "org"],
        ["npmjs", "com"],
        ["deb.debian", "org"],
        ["security.debian", "org"],
    ]
    .map(|parts| parts.join("."));
    let folders = ["work", "root"].map(|name| format!("/{name}/"));
    let mut breaches = Vec::new();
    for (line, text) in numbered(&file.text) {
        for host in hosts.iter().filter(|host| text.contains(host.as_str())) {
            breaches.push(file.at(line, format!("names the host {host}")));
        }
        for folder in &folders {
            // Only an absolute path: `$scratch/…` and `tests/…` may have a folder of that name.
            let absolute = |(at, _): (usize, &str)| {
                let before = text[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "_-.}*/".contains(c))
            };
            if text.match_indices(folder.as_str()).any(absolute) {
                breaches.push(file.at(line, format!("names the folder {folder}")));
            }
        }
    }
    breaches
}

/// Files named in backquotes that do not exist, or that lie in `src` and end without tests.
fn missing_proofs(file: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for (line, text) in numbered(&file.text) {
        let quoted = text.split('`').skip(1).step_by(2);
        let is_file = |name: &&str| name.ends_with(".rs") || name.ends_with(".sh");
        for name in quoted.filter(is_file) {
            match fs::read_to_string(root().join(name)) {
                Err(_) => breaches.push(file.at(line, format!("{name} does not exist"))),
                Ok(code) if name.starts_with("src/") && !code.contains("\nmod tests {") => {
                    breaches.push(file.at(line, format!("{name} has no tests")));
                }
                Ok(_) => {}
            }
        }
    }
    breaches
}

/// Which rooms each room may use.
struct Arrows(Result<BTreeMap<String, BTreeSet<String>>, String>);

impl Arrows {
    /// Reads the fenced block that is opened by a line "```arrows": `room: dep dep` on each line.
    fn parse(manual: &str) -> Self {
        let block = manual.lines().skip_while(|line| *line != "```arrows").skip(1);
        let mut list = BTreeMap::new();
        for line in block.take_while(|line| *line != "```") {
            let Some((name, uses)) = line.split_once(':') else {
                return Self(Err(format!("{ARROWS_PATH}: no colon in the line `{line}`")));
            };
            list.insert(name.to_owned(), uses.split_whitespace().map(str::to_owned).collect());
        }
        if list.is_empty() {
            return Self(Err(format!("{ARROWS_PATH}: it has no list of arrows")));
        }
        Self(Ok(list))
    }

    fn breaches(&self, file: &Source, rooms: &BTreeSet<String>) -> Vec<String> {
        let Some(own) = room(&file.path) else { return Vec::new() };
        let list = match &self.0 {
            Ok(list) => list,
            Err(fault) => return vec![fault.clone()],
        };
        let Some(allowed) = list.get(&own) else {
            return vec![file.at(1, format!("the room `{own}` has no line in {ARROWS_PATH}"))];
        };
        let mut breaches = Vec::new();
        for path in paths(&file.code) {
            let Some(other) = crate_item(&file.path, &path.names, rooms) else { continue };
            if !rooms.contains(&other) {
                let advice = "name the room it lives in, not its re-export";
                breaches.push(file.at(path.line, format!("crate::{other} is no room: {advice}")));
            } else if other != own && !allowed.contains(&other) {
                breaches.push(file.at(path.line, format!("`{own}` may not use `{other}`")));
            }
        }
        breaches
    }
}

/// The name right below the crate's root that a path goes through: of `crate::x::…`, or of
/// `super::…` as seen from that file.
fn crate_item(file_path: &str, names: &[String], rooms: &BTreeSet<String>) -> Option<String> {
    if names.first()? == "crate" {
        return names.get(1).cloned();
    }
    let module = file_path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let depth = module.strip_suffix("/mod").unwrap_or(module).split('/').count();
    let ups = names.iter().take_while(|name| *name == "super").count();
    // An inline module adds a level that is not counted here: such a `super::x` stays in the file,
    // and its name is no room's.
    names.get(ups).filter(|name| ups == depth && rooms.contains(*name)).cloned()
}

fn mentions(file: &Source, forbidden: &[&[&str]]) -> Vec<String> {
    let mut breaches = Vec::new();
    for path in paths(&file.code) {
        for names in forbidden {
            if path.names.windows(names.len()).any(|window| window == *names) {
                breaches.push(file.at(path.line, format!("mentions `{}`", names.join("::"))));
            }
        }
    }
    // A `use` tree names its trunk once for each of its leaves.
    breaches.dedup();
    breaches
}

/// The room of a file below `src`: its first folder or its name. `lib.rs`, the manual and the
/// binaries are in none.
fn room(path: &str) -> Option<String> {
    let name = path.strip_prefix("src/")?.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    (!matches!(name, "lib" | "manual" | "bin")).then(|| name.to_owned())
}

fn is_pure(path: &str) -> bool {
    let name = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")).unwrap_or(path);
    // A pure room may be a folder: then all of it is.
    PURE_ROOMS.iter().any(|pure| {
        name.strip_prefix(pure).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

// ---- Files ----

/// One file, with the views of it that the laws look at.
struct Source {
    path: String,
    text: String,
    /// Tokens without strings, comments and tests.
    code: Vec<Token>,
    /// Tokens without strings and comments.
    code_and_tests: Vec<Token>,
    test_lines: usize,
}

impl Source {
    fn new(path: &str, text: String) -> Self {
        let code_and_tests =
            if path.ends_with(".rs") { tokens(&blanked(&text)) } else { Vec::new() };
        let (mut code, mut test_lines) = without_tests(&code_and_tests);
        if path.ends_with("/tests.rs") {
            // The body of a `#[cfg(test)] mod tests;` elsewhere.
            (code, test_lines) = (Vec::new(), text.lines().count());
        }
        Self { path: path.to_owned(), text, code, code_and_tests, test_lines }
    }

    fn at(&self, line: usize, what: String) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files below these folders.
fn source_files(folders: &[&str]) -> io::Result<Vec<Source>> {
    let mut files = Vec::new();
    for folder in folders {
        walk(folder, &mut files)?;
    }
    files.retain(|file| file.path.ends_with(".rs"));
    Ok(files)
}

/// Every text file of the repository, except what a tool wrote.
fn all_texts() -> io::Result<Vec<Source>> {
    let mut files = Vec::new();
    walk("", &mut files)?;
    files.retain(|file| file.path != "Cargo.lock" && file.path != "fuzz/Cargo.lock");
    Ok(files)
}

fn walk(folder: &str, files: &mut Vec<Source>) -> io::Result<()> {
    const GENERATED: [&str; 5] = [".git", "target", "corpus", "artifacts", "coverage"];
    if !root().join(folder).exists() {
        return Ok(());
    }
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(root().join(folder))? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    for name in names.into_iter().filter(|name| !GENERATED.contains(&name.as_str())) {
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        if root().join(&path).is_dir() {
            walk(&path, files)?;
        } else if let Ok(text) = String::from_utf8(fs::read(root().join(&path))?) {
            files.push(Source::new(&path, text));
        }
    }
    Ok(())
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

// ---- A small lexer ----

/// A word, a `::`, or one other character that is not a space.
#[derive(Clone, Debug)]
struct Token {
    line: usize,
    text: String,
}

/// The text with strings, characters and comments turned to spaces; lines stay where they are.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = at + opaque_len(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { c } else { ' ' }));
            at = end;
        }
    }
    out
}

/// How long the string, character or comment is that starts here; 0 if none does.
fn opaque_len(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let starts = |with: &str| with.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
    if starts("//") {
        return rest.iter().position(|&c| c == '\n').unwrap_or(rest.len());
    }
    if starts("/*") {
        return block_comment_len(rest);
    }
    if rest[0] == '"' {
        return escaped_len(rest, '"');
    }
    if rest[0] == '\'' {
        // 'x' and '\…' are characters; anything else that starts so is a lifetime.
        let character = rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'');
        return if character { escaped_len(rest, '\'') } else { 0 };
    }
    let in_word = at > 0 && is_word(chars[at - 1]);
    let prefix = usize::from(matches!(rest[0], 'b' | 'c'));
    if in_word || rest.get(prefix) != Some(&'r') {
        return 0;
    }
    let hashes = rest[prefix + 1..].iter().take_while(|&&c| c == '#').count();
    let open = prefix + 1 + hashes;
    if rest.get(open) != Some(&'"') {
        return 0;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = rest[open + 1..].windows(close.len()).position(|window| window == close);
    body.map_or(rest.len(), |len| open + 1 + len + close.len())
}

fn block_comment_len(rest: &[char]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < rest.len() {
        match (rest[at], rest.get(at + 1)) {
            ('/', Some('*')) => (at, depth) = (at + 2, depth + 1),
            ('*', Some('/')) => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

fn escaped_len(rest: &[char], close: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != close {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    rest.len().min(at + 1)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn tokens(blanked: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (line, text) in numbered(blanked) {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let len = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                len => len,
            };
            tokens.push(Token { line, text: rest[..len].to_owned() });
            rest = rest[len..].trim_start();
        }
    }
    tokens
}

/// The tokens outside items under `#[cfg(test)]`, and how many lines those items have.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, usize) {
    let (mut code, mut test_lines, mut at) = (Vec::new(), 0, 0);
    while at < tokens.len() {
        let words: Vec<&str> =
            tokens[at..].iter().take(7).map(|token| token.text.as_str()).collect();
        let test = words.starts_with(&["#", "[", "cfg", "(", "test", ")"])
            || words.starts_with(&["#", "[", "cfg", "(", "all", "(", "test"]);
        if test {
            let end = item_end(tokens, at);
            test_lines += tokens[end - 1].line - tokens[at].line + 1;
            at = end;
        } else {
            code.push(tokens[at].clone());
            at += 1;
        }
    }
    (code, test_lines)
}

/// One past the last token of the item whose attributes start here.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() && tokens[at].text == "#" {
        at = group_end(tokens, at + 1);
    }
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => return group_end(tokens, at),
            "(" | "[" => at = group_end(tokens, at),
            // A field or a variant, the last one of its type.
            "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// One past the bracket that closes the one here.
fn group_end(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// Every `fn` with a body, from the line of its name to that of its closing brace.
fn functions(tokens: &[Token]) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        // `fn(u32) -> u32` is a type.
        if pair[0].text != "fn" || !pair[1].text.starts_with(is_word) {
            continue;
        }
        let last = &tokens[item_end(tokens, at) - 1];
        if last.text == "}" {
            let (name, line) = (pair[1].text.clone(), pair[1].line);
            found.push(Function { name, line, lines: last.line - line + 1 });
        }
    }
    found
}

struct NamePath {
    line: usize,
    names: Vec<String>,
}

/// Every path, with the trees of `use` lines written out: `use a::{b, c}` gives `a::b` and `a::c`.
fn paths(tokens: &[Token]) -> Vec<NamePath> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let word = |ahead: usize| tokens.get(at + ahead).map_or("", |token| token.text.as_str());
        // `use<'a>` is a bound.
        if word(0) == "use" && word(1) != "<" {
            at = use_tree(tokens, at + 1, &[], &mut found);
            continue;
        }
        if !word(0).starts_with(is_word) {
            at += 1;
            continue;
        }
        let mut path = NamePath { line: tokens[at].line, names: vec![word(0).to_owned()] };
        let mut ahead = 1;
        while word(ahead) == "::" && word(ahead + 1).starts_with(is_word) {
            path.names.push(word(ahead + 1).to_owned());
            ahead += 2;
        }
        at += ahead;
        found.push(path);
    }
    found
}

fn use_tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<NamePath>,
) -> usize {
    let mut names = prefix.to_vec();
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while at < tokens.len() && tokens[at].text != "}" {
                    let end = use_tree(tokens, at, &names, found);
                    at = if tokens.get(end).is_some_and(|t| t.text == ",") { end + 1 } else { end };
                }
                return at + 1;
            }
            "as" => at += 2,
            "," | "}" | ";" => break,
            name => {
                names.push(name.to_owned());
                at += 1;
            }
        }
    }
    let line = tokens[at.saturating_sub(1)].line;
    found.push(NamePath { line, names });
    at
}

// ---- Each law is shown a bad file ----

#[cfg(test)]
mod tests {
    use super::*;

    fn count(law: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
        law(&Source::new(path, text.to_owned())).len()
    }

    #[test]
    fn lexer_blanks_strings_characters_and_comments() {
        let text = concat!(
            "a /* x /* y */ z */ b // c\n",
            "d(\"e \\\" f\", r#\"g \" h\"#, br\"i\", 'j', '\\'', b'k', '\\u{6c}')\n",
            "fn m<'n>(o: &'n str) { r#p; \"multi\nline\" }"
        );
        let out = blanked(text);
        let words: Vec<String> = tokens(&out).into_iter().map(|token| token.text).collect();
        let words = words.join(" ");
        assert_eq!(words, "a b d ( , , , , , b , ) fn m < ' n > ( o : & ' n str ) { r # p ; }");
        assert_eq!(out.lines().count(), text.lines().count());
        assert_eq!(out.chars().count(), text.chars().count());
    }

    #[test]
    fn an_unfinished_string_ends_with_the_file() {
        for text in ["\"a", "'\\", "/* a", "r#\"a", "// a", "'", "r", "br#"] {
            assert_eq!(blanked(text).chars().count(), text.chars().count(), "{text}");
        }
    }

    #[test]
    fn tests_are_left_out_and_counted() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n\
                    #[cfg(test)]\nuse d;\nstruct E {\n    #[cfg(test)]\n    f: u8,\n}\nfn g() {}\n";
        let file = Source::new("src/x.rs", text.to_owned());
        let names: Vec<String> = functions(&file.code).into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["a", "c", "g"]);
        assert_eq!(file.test_lines, 4 + 2 + 2);
        assert!(Source::new("src/engine/tests.rs", "fn a() {}".into()).code.is_empty());
    }

    #[test]
    fn long_lines_are_seen() {
        let long = "x".repeat(COLUMNS_MAX + 1);
        assert_eq!(count(long_lines, "src/x.rs", &format!("ok\n// {long}\n")), 1);
        assert_eq!(count(long_lines, "src/x.rs", &"é".repeat(COLUMNS_MAX)), 0, "not bytes");
        assert_eq!(count(long_lines, "src/x.rs", &format!("    /// | {long} |\n")), 0);
        assert_eq!(count(long_lines, "src/x.rs", &format!("//! see https://{long}\n")), 0);
        assert_eq!(count(long_lines, "src/x.rs", &format!("//! {long} https://a.b\n")), 1);
    }

    #[test]
    fn long_files_are_seen() {
        let code = "fn a() {}\n".repeat(FILE_LINES_MAX);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(count(long_file, "src/x.rs", &format!("{code}{tests}")), 0);
        assert_eq!(count(long_file, "src/x.rs", &format!("{code}{tests}fn b() {{}}\n")), 1);
    }

    #[test]
    fn long_functions_are_seen() {
        let body =
            |lines: usize| format!("fn a(x: [u8; 2]) {{\n{}}}\n", "b(\"}\");\n".repeat(lines));
        assert_eq!(count(long_functions, "src/x.rs", &body(FUNCTION_LINES_MAX - 2)), 0);
        assert_eq!(count(long_functions, "src/x.rs", &body(FUNCTION_LINES_MAX - 1)), 1);
        let tokens = tokens("trait T { fn a(&self, f: fn(u8) -> u8);\n fn b() {\n } }");
        let found: Vec<_> = functions(&tokens).into_iter().map(|f| (f.name, f.lines)).collect();
        assert_eq!(found, [("b".to_owned(), 2)]);
    }

    #[test]
    fn bad_openings_are_seen() {
        assert_eq!(count(opening, "src/region/dir.rs", "//! What lives here.\n"), 0);
        assert_eq!(
            count(opening, "src/plan.rs", "//! What lives\n//! here. Pure.\n//!\n//! More"),
            0
        );
        for (path, text) in [
            ("src/region/dir.rs", "use std::fmt;\n"),
            ("src/region/dir.rs", "//! No end\n"),
            ("src/region/dir.rs", "//! One. Two.\n"),
            ("src/region/dir.rs", "//! Claims to be. Pure.\n"),
            ("src/plan.rs", "//! Is pure and does not say it.\n"),
        ] {
            assert_eq!(count(opening, path, text), 1, "{text}");
        }
    }

    #[test]
    fn impurities_are_seen() {
        for bad in [
            "use tokio::time;",
            "use std::{fmt, fs};",
            "use std::{io, thread::{self, Thread}};",
            "fn a() { std::net::lookup() }",
            "fn a() { nix::fcntl::open() }",
            "fn a() { let now = std::time::Instant::now(); }",
            "use std::time::SystemTime as Clock;",
            "async fn a() {}",
            "fn a() { b.await }",
        ] {
            assert_eq!(count(impurities, "src/journal/record.rs", bad), 1, "{bad}");
            assert_eq!(count(impurities, "src/job/spec.rs", bad), 1, "{bad}");
            assert_eq!(count(impurities, "src/journal/file.rs", bad), 0, "{bad}");
        }
        let good = "use std::time::Instant; use std::os::unix::ffi; // tokio\n\
                    #[cfg(test)] mod tests { use std::fs; }";
        assert_eq!(count(impurities, "src/plan.rs", good), 0);
    }

    #[test]
    fn shortcuts_are_seen() {
        for bad in [
            "#[allow(dead_code)] fn a() {}",
            "#![allow(dead_code)]",
            "fn a() { b.unwrap() }",
            "fn a() { b\n.expect(\"c\") }",
            "fn a() { b.map(Option::unwrap) }",
            "fn a() { panic!(\"b\") }",
            "fn a() { dbg!(b) }",
            "fn a() { let _ = b(); }",
            "fn a() { let _: u8 = b(); }",
        ] {
            assert_eq!(count(shortcuts, "src/bin/blockferry/main.rs", bad), 1, "{bad}");
        }
        let good = "#[expect(dead_code, reason = \"b\")] fn a() { b.unwrap_or(0); }\n\
                    fn e() { let _c = panic != d; }\n\
                    #[cfg(test)] mod tests { fn a() { b.unwrap() } }";
        assert_eq!(count(shortcuts, "src/x.rs", good), 0);
    }

    #[test]
    fn unsafe_is_seen() {
        let bad = "fn a() { unsafe { b() } }";
        assert_eq!(count(unsafe_code, "src/region/dir.rs", bad), 1);
        assert_eq!(count(unsafe_code, "src/region/mmap.rs", bad), 0);
        assert_eq!(count(unsafe_code, "src/lib.rs", "#![deny(unsafe_code)] // unsafe"), 0);
    }

    #[test]
    fn steps_past_the_seam_are_seen() {
        for bad in [
            "use std::fs;",
            "use rustix::{fs::openat, process};",
            "use rustix::{io, process};",
            "fn a() { nix::fcntl::fcntl() }",
            "fn a() { File::open(b) }",
        ] {
            assert_eq!(count(past_the_seam, "src/region/dir.rs", bad), 1, "{bad}");
            assert_eq!(count(past_the_seam, "src/disk.rs", bad), 0, "{bad}");
            assert_eq!(count(past_the_seam, "src/testing.rs", bad), 0, "{bad}");
            assert_eq!(count(past_the_seam, "src/bin/blockferry/main.rs", bad), 0, "{bad}");
        }
        assert_eq!(
            count(past_the_seam, "src/x.rs", "use std::os::unix::ffi; use rustix::rand;"),
            0
        );
    }

    #[test]
    fn markers_and_silent_ignores_are_seen() {
        let marker = ["// TO", "DO: later"].concat();
        assert_eq!(count(unfinished, "src/x.rs", &marker), 1);
        assert_eq!(count(unfinished, "src/x.rs", "mktemp(\"a.XXXXXX\")"), 0);
        assert_eq!(count(silent_ignores, "tests/x.rs", "#[test] #[ignore] fn a() {}"), 1);
        assert_eq!(count(silent_ignores, "tests/x.rs", "#[ignore = \"slow\"] fn a() {}"), 0);
    }

    #[test]
    fn missing_proofs_are_seen() {
        let bad = "Proof: `src/nowhere.rs`, `src/lib.rs`,\n`tests/it/cancel.rs`, `src/id.rs`.";
        assert_eq!(count(missing_proofs, "src/manual/guarantees.md", bad), 2);
    }

    #[test]
    fn machine_names_are_seen() {
        for bad in [["cd /wo", "rk/main"], ["\"/ro", "ot/x\""], ["https://index.cra", "tes.io/a"]] {
            assert_eq!(count(machine_names, "README.md", &bad.concat()), 1, "{bad:?}");
        }
        let good = ["see https://crates.io and $scratch/wo", "rk/a and tests/wo", "rk/b"].concat();
        assert_eq!(count(machine_names, "README.md", &good), 0);
    }

    #[test]
    fn forbidden_arrows_are_seen() {
        let arrows =
            Arrows::parse("text\n```arrows\nerror:\nplan: error\njournal: error\n```\nmore: x\n");
        let rooms: BTreeSet<String> =
            ["error", "plan", "journal", "engine"].map(str::to_owned).into();
        let breaches = |path: &str, text: &str| count(|f| arrows.breaches(f, &rooms), path, text);
        for (path, bad) in [
            ("src/error.rs", "use crate::plan::Plan;"),
            ("src/plan.rs", "use crate::{error::Error, journal::{self, record}};"),
            ("src/plan.rs", "fn a() -> crate::journal::Journal {}"),
            ("src/plan.rs", "use super::journal;"),
            ("src/plan.rs", "use crate::Error;"),
            ("src/journal/record.rs", "use super::super::plan;"),
            ("src/journal/mod.rs", "use super::plan;"),
            ("src/engine/mod.rs", "fn a() {}"),
        ] {
            let found = breaches(path, bad);
            assert!(found > 0, "{bad}");
        }
        for (path, good) in [
            ("src/plan.rs", "use crate::error::{Error, Result}; // crate::journal"),
            ("src/plan.rs", "#[cfg(test)] mod tests { use crate::journal; }"),
            ("src/plan.rs", "pub(crate) mod a { use super::Plan; }"),
            ("src/journal/record.rs", "use super::file; use crate::journal::file::File;"),
            ("src/lib.rs", "pub use crate::engine::Engine;"),
            ("src/bin/blockferry/main.rs", "use crate::copy;"),
        ] {
            assert_eq!(breaches(path, good), 0, "{good}");
        }
        for manual in ["no list", "```arrows\nplan error\n```"] {
            let arrows = Arrows::parse(manual);
            assert_eq!(count(|f| arrows.breaches(f, &rooms), "src/plan.rs", ""), 1, "{manual}");
        }
    }
}
