//! Who may do what: the policy file, parsed once; what it does not grant is denied. Pure.
//!
//! ```toml
//! [[peer]]
//! identity = "alpha"
//! connections_max = 4
//! rate_max = "100MiB/s"
//!
//! [[peer.grant]]
//! operations = ["push", "cancel", "list"]
//! regions = ["b"]
//! image_prefix = "m-"
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use super::identity::Identity;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ImageId, RegionName, shown};
use crate::options::{parse_bytes, parse_rate};

/// What peers may do here. There is no rule that denies: whatever no grant allows is denied.
#[derive(Clone, Debug)]
pub struct Policy(Rules);

#[derive(Clone, Debug)]
enum Rules {
    Everything,
    Listed(BTreeMap<Identity, Peer>),
}

#[derive(Clone, Debug)]
struct Peer {
    ceilings: Ceilings,
    rules: Vec<Rule>,
}

/// One `[[peer.grant]]`.
#[derive(Clone, Debug)]
struct Rule {
    operations: Vec<Operation>,
    regions: Vec<RegionName>,
    image_prefix: String,
}

impl Policy {
    /// The most bytes that a policy file has.
    pub const BYTES_MAX: u64 = 1 << 20;

    /// Reads a policy file.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], with the line, for what is no TOML, a key that is not known, a name
    /// that is none, an identity that is named twice, and a grant that grants nothing.
    pub fn parse(text: &str) -> Result<Self> {
        let reader = Reader { text };
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > Self::BYTES_MAX {
            return Err(Error::new(ErrorKind::Invalid, "read the policy: it is over 1 MiB"));
        }
        let file: FileForm = toml::from_str(text).map_err(|error| reader.unread(error))?;
        let mut peers = BTreeMap::new();
        for peer in &file.peer {
            let identity = reader.parsed::<Identity>(&peer.identity)?;
            if peers.insert(identity, reader.peer(peer)?).is_some() {
                let what = format!("the identity {} is named twice", shown(peer.identity.as_ref()));
                return Err(reader.refusal(&peer.identity, what));
            }
        }
        Ok(Self(Rules::Listed(peers)))
    }

    /// Anybody may do everything, with the ceilings that hold by default: for a Unix socket, where
    /// the permissions of the socket's file are the policy.
    pub fn everything() -> Self {
        Self(Rules::Everything)
    }

    /// How much that peer may take of this daemon, whatever it does.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when the policy does not name it.
    pub fn ceilings(&self, identity: &Identity) -> Result<Ceilings> {
        match &self.0 {
            // As many as a door lets in: nobody is told apart here.
            Rules::Everything => {
                Ok(Ceilings { connections_max: CONNECTIONS_MAX, ..Ceilings::default() })
            }
            Rules::Listed(peers) => match peers.get(identity) {
                Some(peer) => Ok(peer.ceilings),
                None => Err(Error::new(ErrorKind::Denied, format!("connect as {identity}"))
                    .hint("the policy does not name it")),
            },
        }
    }

    /// Whether that peer may do this in that region: to that image, or, without one, to some.
    ///
    /// Without an image, as for a list, what is done must stay within [`Grant::covers`].
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when no grant allows it. It is the same whether or not there are such
    /// a region, image or identity.
    pub fn check(
        &self,
        identity: &Identity,
        operation: Operation,
        region: &RegionName,
        image: Option<&ImageId>,
    ) -> Result<Grant> {
        self.check_any(identity, &[operation], region, image)
    }

    /// Whether that peer may do any of these things there, as [`Policy::check`]. What it may do one
    /// of them to counts as much as what it may do another to.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when no grant allows one of them; the error names the first.
    pub fn check_any(
        &self,
        identity: &Identity,
        operations: &[Operation],
        region: &RegionName,
        image: Option<&ImageId>,
    ) -> Result<Grant> {
        let image_prefixes = match &self.0 {
            Rules::Everything => vec![String::new()],
            Rules::Listed(peers) => {
                let rules = peers.get(identity).map_or(&[][..], |peer| &peer.rules);
                let grants = |rule: &&Rule| {
                    let granted = operations.iter().any(|one| rule.operations.contains(one));
                    granted && rule.regions.contains(region)
                };
                rules.iter().filter(grants).map(|rule| rule.image_prefix.clone()).collect()
            }
        };
        let grant = Grant { image_prefixes };
        let granted = match image {
            Some(image) => grant.covers(image),
            None => !grant.image_prefixes.is_empty(),
        };
        if granted {
            return Ok(grant);
        }
        let place = match image {
            Some(image) => format!("{region}/{image}"),
            None => region.to_string(),
        };
        let operation = operations.first().map_or("act", |operation| operation.name());
        Err(Error::new(ErrorKind::Denied, format!("{operation} as {identity}"))
            .within(place)
            .hint("the policy does not grant it"))
    }
}

/// What a peer may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Send an image here: stage it, resume it, commit it.
    Push,
    /// Read an image that is here.
    Pull,
    /// Learn which images and jobs are here, and how they stand.
    List,
    /// Cancel a job, also somebody else's.
    Cancel,
    /// Remove a committed image.
    Remove,
    /// Suspend a job, or change its limits.
    Control,
    /// Settle what a crash left behind.
    Recover,
}

impl Operation {
    /// Every operation, in the order of the manual.
    pub const ALL: [Self; 7] = [
        Self::Push,
        Self::Pull,
        Self::List,
        Self::Cancel,
        Self::Remove,
        Self::Control,
        Self::Recover,
    ];

    /// Its name in a policy file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Pull => "pull",
            Self::List => "list",
            Self::Cancel => "cancel",
            Self::Remove => "remove",
            Self::Control => "control",
            Self::Recover => "recover",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::new(ErrorKind::Invalid, format!("use {} as operation", shown(text)))
                .hint(format!("the operations are {names}"))
        })
    }
}

/// That an operation in a region is allowed, and to which images.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "what is told or done must stay within what it covers"]
pub struct Grant {
    image_prefixes: Vec<String>,
}

impl Grant {
    /// Whether the operation may tell of that image, or touch it. One that is not covered is to be
    /// treated exactly as one that does not exist.
    pub fn covers(&self, image: &ImageId) -> bool {
        self.image_prefixes.iter().any(|prefix| image.as_str().starts_with(prefix.as_str()))
    }

    /// Whether it covers every image there can be.
    pub fn covers_all(&self) -> bool {
        self.image_prefixes.iter().any(String::is_empty)
    }
}

/// How much one peer may take of this daemon, over all of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ceilings {
    /// Connections at a time.
    pub connections_max: usize,
    /// Bytes per second, in either direction; `None`: as fast as it goes.
    pub rate_max: Option<NonZeroU64>,
    /// Bytes under way at a time. A chunk of an image must fit.
    pub window_bytes_max: u64,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self { connections_max: 8, rate_max: None, window_bytes_max: 256 << 20 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(default)]
    peer: Vec<PeerForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerForm {
    identity: Spanned<String>,
    connections_max: Option<Spanned<u32>>,
    rate_max: Option<Spanned<String>>,
    window_max: Option<Spanned<String>>,
    #[serde(default)]
    grant: Vec<GrantForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantForm {
    operations: Spanned<Vec<Spanned<String>>>,
    regions: Spanned<Vec<Spanned<String>>>,
    image_prefix: Option<Spanned<String>>,
}

/// Turns the forms of the file into checked types, and tells the line of what is wrong.
struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn peer(&self, form: &PeerForm) -> Result<Peer> {
        let mut ceilings = Ceilings::default();
        if let Some(count) = &form.connections_max {
            let most = usize::try_from(*count.as_ref()).unwrap_or(usize::MAX);
            if !(1..=CONNECTIONS_MAX).contains(&most) {
                let what = format!("connections_max is not from 1 to {CONNECTIONS_MAX}");
                return Err(self.refusal(count, what));
            }
            ceilings.connections_max = most;
        }
        if let Some(rate) = &form.rate_max {
            let bytes_per_sec = parse_rate(rate.as_ref()).map_err(|e| self.wrong(rate, e))?;
            ceilings.rate_max = NonZeroU64::new(bytes_per_sec);
        }
        if let Some(window) = &form.window_max {
            let bytes = parse_bytes(window.as_ref()).map_err(|e| self.wrong(window, e))?;
            if !(WINDOW_BYTES_LEAST..=WINDOW_BYTES_MOST).contains(&bytes) {
                let what = "window_max is not from 1MiB to 64GiB".to_owned();
                return Err(self.refusal(window, what));
            }
            ceilings.window_bytes_max = bytes;
        }
        let rules = form.grant.iter().map(|grant| self.rule(grant)).collect::<Result<_>>()?;
        Ok(Peer { ceilings, rules })
    }

    fn rule(&self, form: &GrantForm) -> Result<Rule> {
        let image_prefix = match &form.image_prefix {
            // Every beginning of an image id is one itself, but for the empty one.
            Some(prefix) if prefix.as_ref().is_empty() => String::new(),
            Some(prefix) => self.parsed::<ImageId>(prefix)?.as_str().to_owned(),
            None => String::new(),
        };
        Ok(Rule {
            operations: self.parsed_list(&form.operations)?,
            regions: self.parsed_list(&form.regions)?,
            image_prefix,
        })
    }

    /// A list that is empty grants nothing, which nobody means who writes a grant.
    fn parsed_list<T: FromStr<Err = Error>>(
        &self,
        list: &Spanned<Vec<Spanned<String>>>,
    ) -> Result<Vec<T>> {
        if list.as_ref().is_empty() {
            return Err(self.refusal(list, "an empty list grants nothing".to_owned()));
        }
        list.as_ref().iter().map(|text| self.parsed(text)).collect()
    }

    fn parsed<T: FromStr<Err = Error>>(&self, text: &Spanned<String>) -> Result<T> {
        text.as_ref().parse().map_err(|error| self.wrong(text, error))
    }

    fn wrong<T>(&self, at: &Spanned<T>, cause: Error) -> Error {
        Error::new(ErrorKind::Invalid, format!("read the policy, line {}", self.line(at.span())))
            .because(cause)
    }

    fn refusal<T>(&self, at: &Spanned<T>, what: String) -> Error {
        let line = self.line(at.span());
        Error::new(ErrorKind::Invalid, format!("read the policy, line {line}: {what}"))
    }

    /// What is no TOML, or not in the form of a policy. The reader's own text draws the line over
    /// several; here the number is enough.
    fn unread(&self, cause: toml::de::Error) -> Error {
        let line = cause.span().map_or(1, |span| self.line(span));
        let what = cause.message().lines().next().unwrap_or_default().to_owned();
        Error::new(ErrorKind::Invalid, format!("read the policy, line {line}: {what}"))
    }

    fn line(&self, span: std::ops::Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
    }
}

const CONNECTIONS_MAX: usize = 1024;
const WINDOW_BYTES_LEAST: u64 = 1 << 20;
const WINDOW_BYTES_MOST: u64 = 64 << 30;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
# Alpha brings machines to b and may look after them; beta reads both regions.
[[peer]]
identity = "alpha"
connections_max = 4
rate_max = "100MiB/s"
window_max = "64MiB"

[[peer.grant]]
operations = ["push", "cancel", "list"]
regions = ["b"]
image_prefix = "m-"

[[peer.grant]]
operations = ["list"]
regions = ["b"]
image_prefix = "shared-"

[[peer]]
identity = "beta"

[[peer.grant]]
operations = ["pull"]
regions = ["a", "b"]

[[peer]]
identity = "idle"
"#;

    fn who(name: &str) -> Identity {
        name.parse().unwrap()
    }

    fn region(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    fn image(name: &str) -> ImageId {
        name.parse().unwrap()
    }

    #[test]
    fn every_operation_is_granted_exactly_where_the_file_says() {
        let policy = Policy::parse(TEXT).unwrap();
        let granted = |who: &str, operation: Operation, place: &str, id: &str| match (who, place) {
            ("alpha", "b") => match operation {
                Operation::Push | Operation::Cancel => id.starts_with("m-"),
                Operation::List => id.starts_with("m-") || id.starts_with("shared-"),
                _ => false,
            },
            ("beta", "a" | "b") => operation == Operation::Pull,
            _ => false,
        };
        let mut grants = 0;
        for name in ["alpha", "beta", "idle", "nobody", "uid:0"] {
            for operation in Operation::ALL {
                for place in ["a", "b", "c", "*"] {
                    for id in ["m-1", "m-", "m", "shared-x", "other", "M-1"] {
                        let found =
                            policy.check(&who(name), operation, &region(place), Some(&image(id)));
                        let expected = granted(name, operation, place, id);
                        assert_eq!(found.is_ok(), expected, "{name} {operation} {place}/{id}");
                        grants += usize::from(expected);
                    }
                }
            }
        }
        assert!(grants > 10);
    }

    #[test]
    fn without_an_image_the_grant_says_which_ones_are_meant() {
        let policy = Policy::parse(TEXT).unwrap();
        let list = policy.check(&who("alpha"), Operation::List, &region("b"), None).unwrap();
        let covered = ["m-1", "shared-x", "other", "xm-1"].map(|id| list.covers(&image(id)));
        assert_eq!(covered, [true, true, false, false]);
        let all = policy.check(&who("beta"), Operation::Pull, &region("a"), None).unwrap();
        assert!(all.covers(&image("anything")) && all.covers_all() && !list.covers_all());
        let denied = policy.check(&who("beta"), Operation::List, &region("a"), None).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied);
        assert!(!denied.is_retryable());
    }

    #[test]
    fn what_several_operations_are_granted_to_is_united() {
        let policy = Policy::parse(TEXT).unwrap();
        let any = |operations: &[Operation]| {
            policy.check_any(&who("alpha"), operations, &region("b"), None).unwrap()
        };
        for operations in [
            [Operation::List, Operation::Push],
            [Operation::Push, Operation::List],
            [Operation::Pull, Operation::List],
        ] {
            let grant = any(&operations);
            let covered = ["m-1", "shared-x", "other"].map(|id| grant.covers(&image(id)));
            assert_eq!(covered, [true, true, false], "{operations:?}");
        }
        assert!(!any(&[Operation::Push, Operation::Pull]).covers(&image("shared-x")));
        let none = policy.check_any(&who("alpha"), &[Operation::Pull], &region("b"), None);
        assert!(none.unwrap_err().to_string().contains("pull as alpha"));
    }

    #[test]
    fn nothing_is_granted_by_an_empty_file_and_everything_only_where_it_is_said() {
        let empty = Policy::parse("# Nobody yet.\n").unwrap();
        let everything = Policy::everything();
        for operation in Operation::ALL {
            for id in [None, Some(&image("m-1"))] {
                let ask = |policy: &Policy| policy.check(&who("a"), operation, &region("b"), id);
                assert_eq!(ask(&empty).unwrap_err().kind(), ErrorKind::Denied);
                assert!(ask(&everything).unwrap().covers(&image("x")));
            }
        }
        assert_eq!(empty.ceilings(&who("a")).unwrap_err().kind(), ErrorKind::Denied);
        let most = Ceilings { connections_max: CONNECTIONS_MAX, ..Ceilings::default() };
        assert_eq!(everything.ceilings(&who("a")).unwrap(), most);
    }

    #[test]
    fn a_refusal_names_who_what_and_where_and_not_why() {
        let policy = Policy::parse(TEXT).unwrap();
        let refused = |name: &str, place: &str| {
            policy
                .check(&who(name), Operation::Remove, &region(place), Some(&image("m-1")))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused("alpha", "b"),
            "permission denied: remove as alpha in b/m-1 (the policy does not grant it)"
        );
        // The same for a peer and a region that the file does not know.
        assert_eq!(refused("alpha", "b").replace("alpha", "nobody"), refused("nobody", "b"));
        assert_eq!(refused("alpha", "b").replace("b/", "zz/"), refused("alpha", "zz"));
    }

    #[test]
    fn ceilings_are_those_of_the_file_or_the_defaults() {
        let policy = Policy::parse(TEXT).unwrap();
        let alpha = policy.ceilings(&who("alpha")).unwrap();
        assert_eq!(alpha.connections_max, 4);
        assert_eq!(alpha.rate_max, NonZeroU64::new(100 << 20));
        assert_eq!(alpha.window_bytes_max, 64 << 20);
        assert_eq!(policy.ceilings(&who("beta")).unwrap(), Ceilings::default());
        assert_eq!(policy.ceilings(&who("idle")).unwrap(), Ceilings::default());
        let none = Policy::parse("[[peer]]\nidentity = 'a'\nrate_max = 'none'").unwrap();
        assert_eq!(none.ceilings(&who("a")).unwrap().rate_max, None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let grant = "[[peer]]\nidentity = 'a'\n[[peer.grant]]\n";
        let cases = [
            ("[[peer]\n".to_owned(), 1),
            ("\n\npeers = 1\n".into(), 3),
            ("[[peer]]\nidentity = 'a'\nrate = '1'\n".into(), 3),
            ("[[peer]]\nidentity = 'a b'\n".into(), 2),
            ("[[peer]]\nidentity = 7\n".into(), 2),
            ("# x\n[[peer]]\nconnections_max = 1\n".into(), 2),
            ("[[peer]]\nidentity = 'a'\n[[peer]]\nidentity = 'a'\n".into(), 4),
            ("[[peer]]\nidentity = 'a'\nconnections_max = 0\n".into(), 3),
            ("[[peer]]\nidentity = 'a'\nconnections_max = -1\n".into(), 3),
            ("[[peer]]\nidentity = 'a'\nconnections_max = 1025\n".into(), 3),
            ("[[peer]]\nidentity = 'a'\nrate_max = 'fast'\n".into(), 3),
            ("[[peer]]\nidentity = 'a'\nwindow_max = '1KiB'\n".into(), 3),
            ("[[peer]]\nidentity = 'a'\nwindow_max = '65GiB'\n".into(), 3),
            (format!("{grant}operations = []\nregions = ['b']\n"), 4),
            (format!("{grant}operations = ['push']\nregions = []\n"), 5),
            (format!("{grant}operations = ['push']\n"), 3),
            (format!("{grant}operations = ['Push']\nregions = ['b']\n"), 4),
            (format!("{grant}operations = ['push',\n'*']\nregions = ['b']\n"), 5),
            (format!("{grant}operations = 'push'\nregions = ['b']\n"), 4),
            (format!("{grant}operations = ['push']\nregions = ['']\n"), 5),
            (format!("{grant}operations=['push']\nregions=['b']\nimage_prefix='../'\n"), 6),
            (format!("{grant}operations=['push']\nregions=['b']\nprefix='m-'\n"), 6),
            (format!("{grant}operations=['push']\nregions=['b']\ndeny=true\n"), 6),
        ];
        for (text, line) in cases {
            let error = Policy::parse(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            let said = error.report();
            assert!(said.contains(&format!("policy, line {line}")), "{text}: {said}");
            assert!(said.len() < 500 && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let text = "#".repeat(usize::try_from(Policy::BYTES_MAX).unwrap() + 1);
        assert!(Policy::parse(&text).unwrap_err().to_string().contains("over 1 MiB"));
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_refused_in_few_words_or_grants_no_operation_anew(
            at in 0..TEXT.len(),
            cut in 0..40_usize,
            put in "[ -~\\n]{0,8}",
        ) {
            let mut text = TEXT.to_owned();
            text.replace_range(at..(at + cut).min(TEXT.len()), &put);
            match Policy::parse(&text) {
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::Invalid);
                    prop_assert!(error.report().len() < 600, "{}", error.report());
                }
                Ok(policy) => {
                    // No operation that stands nowhere in the file comes out of it.
                    let denied = policy.check(&who("alpha"), Operation::Remove, &region("b"), None);
                    prop_assert!(denied.is_err() || put.contains("remove"));
                }
            }
        }
    }

    #[test]
    fn operations_and_names_are_one_to_one() {
        for operation in Operation::ALL {
            assert_eq!(operation.name().parse::<Operation>().unwrap(), operation);
        }
        assert_eq!("all".parse::<Operation>().unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn the_manual_shows_a_policy_that_is_one() {
        let manual = include_str!("../manual/operating.md");
        let shown = manual.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let policy = Policy::parse(shown.unwrap()).unwrap();
        let push = policy.check(&who("alpha"), Operation::Push, &region("b"), Some(&image("m-1")));
        assert!(push.is_ok());
        for operation in Operation::ALL {
            assert!(manual.contains(&format!("| `{operation}` |")), "{operation}");
        }
    }
}
