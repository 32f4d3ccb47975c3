//! The one error type of the crate: a kind, what was being done, where, and the cause. Pure.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one machine word.
///
/// An error names its [kind](ErrorKind) (what the caller can do about it), the action that failed,
/// where it failed, and the cause, which is reached through [`std::error::Error::source`] and is
/// not repeated in the message.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    action: Cow<'static, str>,
    place: Option<String>,
    offset: Option<u64>,
    hint: Option<Cow<'static, str>>,
    retryable: bool,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    also: Vec<Error>,
}

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Somebody else holds it now; try again later.
    Busy,
    /// Stored bytes do not verify; do not trust them.
    Corrupt,
    /// The system refuses access; change permissions.
    Denied,
    /// The destination is taken; choose another or remove it.
    Exists,
    /// A later attempt of the same job has taken over; stop.
    Fenced,
    /// The request can never succeed as given; change it.
    Invalid,
    /// The device or the system failed.
    Io,
    /// No room at the destination; make some and resume.
    NoSpace,
    /// The image there was not made by a copy.
    NotACopy,
    /// There is no such thing.
    NotFound,
    /// The source is not what it was when the copy started; start anew.
    SourceChanged,
    /// The region does not answer now; resume later.
    Unavailable,
    /// This place cannot do what was asked.
    Unsupported,
}

impl ErrorKind {
    /// Every kind, in the order of their names.
    pub const ALL: [Self; 13] = [
        Self::Busy,
        Self::Corrupt,
        Self::Denied,
        Self::Exists,
        Self::Fenced,
        Self::Invalid,
        Self::Io,
        Self::NoSpace,
        Self::NotACopy,
        Self::NotFound,
        Self::SourceChanged,
        Self::Unavailable,
        Self::Unsupported,
    ];

    /// The stable name, as in the command line's JSON: `not_found`, `no_space`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Exists => "exists",
            Self::Fenced => "fenced",
            Self::Invalid => "invalid",
            Self::Io => "io",
            Self::NoSpace => "no_space",
            Self::NotACopy => "not_a_copy",
            Self::NotFound => "not_found",
            Self::SourceChanged => "source_changed",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
        }
    }

    /// The kind of that stable name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn phrase(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Corrupt => "corrupt data",
            Self::Denied => "permission denied",
            Self::Exists => "already exists",
            Self::Fenced => "fenced by a later attempt",
            Self::Invalid => "invalid request",
            Self::Io => "I/O failed",
            Self::NoSpace => "no space",
            Self::NotACopy => "not made by a copy",
            Self::NotFound => "not found",
            Self::SourceChanged => "source changed",
            Self::Unavailable => "region unavailable",
            Self::Unsupported => "unsupported",
        }
    }
}

impl Error {
    /// An error of that kind, that happened while doing `action` (a verb phrase: `write chunk`).
    pub fn new(kind: ErrorKind, action: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            action: action.into(),
            place: None,
            offset: None,
            hint: None,
            retryable: matches!(kind, ErrorKind::Unavailable),
            cause: None,
            also: Vec::new(),
        }))
    }

    /// A failed system call: the kind comes from the error number; or from the error of ours that
    /// came through somebody's stream.
    pub fn io(action: impl Into<Cow<'static, str>>, cause: impl Into<std::io::Error>) -> Self {
        use std::io::ErrorKind as Io;
        let cause = cause.into();
        let ours = cause.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).map(Self::kind);
        let kind = ours.unwrap_or_else(|| match cause.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::AlreadyExists => ErrorKind::Exists,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::ResourceBusy | Io::ExecutableFileBusy => ErrorKind::Busy,
            Io::Unsupported => ErrorKind::Unsupported,
            Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        });
        Self::new(kind, action).because(cause)
    }

    /// Names the place: a location or a path.
    #[must_use]
    pub fn within(mut self, place: impl Into<String>) -> Self {
        self.0.place.get_or_insert_with(|| place.into());
        self
    }

    /// Names the place and the byte offset from the start of the image.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self.within(place)
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Keeps the cause, whole.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Sets whether the same call may succeed when made again. Decided where the error is born.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Attaches a failure that happened while cleaning up after this one. This one stays the error.
    #[must_use]
    pub fn and(mut self, later: Error) -> Self {
        self.0.also.push(later);
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done, without where.
    #[cfg(feature = "peer")]
    pub(crate) fn action(&self) -> &str {
        &self.0.action
    }

    /// Whether the same call may succeed when made again.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The byte offset from the start of the image, where one is known.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// Failures that happened while cleaning up after this one.
    pub fn also(&self) -> &[Error] {
        &self.0.also
    }

    /// The message with the messages of its causes, on one line: for a log or a terminal.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        for later in &self.0.also {
            text.push_str("; then ");
            text.push_str(&later.report());
        }
        text.replace(['\n', '\r'], " ")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        write!(f, "{}: {}", inner.kind.phrase(), inner.action)?;
        if let Some(place) = &inner.place {
            write!(f, " in {place}")?;
        }
        if let Some(offset) = inner.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(hint) = &inner.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}, {:?}", self.0.kind, self.to_string())?;
        if let Some(cause) = &self.0.cause {
            write!(f, ", cause: {cause:?}")?;
        }
        write!(f, ")")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let cause = self.0.cause.as_deref()?;
        Some(cause)
    }
}

const _: () = assert!(size_of::<Error>() == size_of::<usize>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_an_error_survives_a_stream() {
        let full = Error::new(ErrorKind::NoSpace, "write file");
        let through = Error::io("write manifest", std::io::Error::other(full));
        assert_eq!(through.kind(), ErrorKind::NoSpace);
        let other = Error::io("write manifest", std::io::Error::other("odd"));
        assert_eq!(other.kind(), ErrorKind::Io);
    }

    #[test]
    fn display_names_kind_action_place_offset_and_hint() {
        let cause = std::io::Error::other("connection reset");
        let error = Error::new(ErrorKind::Unavailable, "write chunk")
            .at("peer://b", 65536)
            .hint("resume later")
            .because(cause);
        assert_eq!(
            error.to_string(),
            "region unavailable: write chunk in peer://b at byte 65536 (resume later)"
        );
        assert!(error.report().ends_with("(resume later): connection reset"));
        assert!(error.is_retryable());
    }

    #[test]
    fn the_first_failure_stays_the_error() {
        let error = Error::new(ErrorKind::NoSpace, "write chunk")
            .and(Error::new(ErrorKind::Io, "remove stage"));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.report(), "no space: write chunk; then I/O failed: remove stage");
    }

    #[test]
    fn kinds_and_names_are_one_to_one() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(ErrorKind::from_name("nonsense"), None);
    }

    #[test]
    fn the_first_place_named_is_kept() {
        let error = Error::new(ErrorKind::Io, "sync").within("dir:///a").within("dir:///b");
        assert_eq!(error.to_string(), "I/O failed: sync in dir:///a");
    }
}
