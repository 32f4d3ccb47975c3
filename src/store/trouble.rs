//! Why a store did not do what it was asked, in its own words, and what that is good for. Pure.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// What to do about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The store wants fewer requests: wait, send fewer at a time, and try again.
    Throttled,
    /// It may pass: try again.
    Transient,
    /// It will not: give up.
    Fatal,
}

/// What a store said about a request that failed: the cause of the [`Error`] that tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// What to do about it.
    pub class: Class,
    /// The status of the HTTP reply: 200 when the error was in the body of a success.
    pub status: u16,
    /// The store's code, `SlowDown`; empty when it gave none.
    pub code: String,
    /// The store's message; empty when it gave none.
    pub message: String,
    /// The number under which the store's operators find the request.
    pub request_id: Option<String>,
    /// How long the store asks to wait.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answered {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if let Some(id) = &self.request_id {
            write!(f, " (request {id})")?;
        }
        Ok(())
    }
}

impl StdError for Trouble {}

/// Codes by which a store asks for fewer requests.
const THROTTLED: [&str; 10] = [
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "ServerBusy",
];

/// Codes of what may pass, whatever the status is.
const TRANSIENT: [&str; 10] = [
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
    // What was sent did not arrive as it was sent.
    "BadDigest",
    "IncompleteBody",
    "InvalidDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
];

impl Trouble {
    /// The class of that status and code.
    pub(crate) fn class_of(status: u16, code: &str) -> Class {
        if status == 429 || THROTTLED.contains(&code) {
            return Class::Throttled;
        }
        match (status, TRANSIENT.contains(&code)) {
            // Without a code it comes from whatever stands before the store.
            (503, _) => Class::Throttled,
            (_, true) | (408 | 500 | 502 | 504, _) => Class::Transient,
            _ => Class::Fatal,
        }
    }

    /// What of an error is a store's own word, if it is one.
    pub fn of(error: &Error) -> Option<&Self> {
        StdError::source(error)?.downcast_ref()
    }

    /// What to do about an error of a store.
    pub fn class(error: &Error) -> Class {
        match (Self::of(error), error.is_retryable()) {
            (Some(trouble), _) => trouble.class,
            (None, true) => Class::Transient,
            (None, false) => Class::Fatal,
        }
    }

    /// The error of doing `action`, at that place.
    pub(crate) fn error(self, action: &str, place: String) -> Error {
        let (kind, hint) = self.kind();
        let retryable = self.class != Class::Fatal;
        let error = Error::new(kind, action.to_owned()).within(place).retryable(retryable);
        let error = if hint.is_empty() { error } else { error.hint(hint) };
        error.because(self)
    }

    fn kind(&self) -> (ErrorKind, &'static str) {
        let kind = match (self.class, self.code.as_str()) {
            (Class::Throttled | Class::Transient, _) => return (ErrorKind::Unavailable, ""),
            (_, "RequestTimeTooSkewed" | "RequestExpired") => {
                return (ErrorKind::Denied, "set this machine's clock");
            }
            (_, "ExpiredToken" | "TokenRefreshRequired") => {
                return (ErrorKind::Denied, "the session has ended: log in again");
            }
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken") => {
                return (ErrorKind::Denied, "check the key and its secret");
            }
            (_, "NoSuchBucket") => return (ErrorKind::NotFound, "make the bucket first"),
            (
                _,
                "AuthorizationHeaderMalformed"
                | "PermanentRedirect"
                | "TemporaryRedirect"
                | "IllegalLocationConstraintException",
            ) => return (ErrorKind::Invalid, "give the bucket's own region: region=NAME"),
            (_, "QuotaExceeded" | "InsufficientStorage" | "StorageFull") => ErrorKind::NoSpace,
            (_, "NotImplemented" | "MethodNotAllowed" | "NotSupported") => ErrorKind::Unsupported,
            (_, "NoSuchKey" | "NoSuchUpload") => ErrorKind::NotFound,
            (_, "PreconditionFailed" | "InvalidRange") => ErrorKind::SourceChanged,
            (_, "AccessDenied" | "AccountProblem" | "AllAccessDisabled") => ErrorKind::Denied,
            // Nobody follows there: not with a key, and not with what is to be written.
            _ if (300..=399).contains(&self.status) => {
                return (ErrorKind::Invalid, "it sends elsewhere: give the endpoint that answers");
            }
            _ => self.kind_of_status(),
        };
        (kind, "")
    }

    fn kind_of_status(&self) -> ErrorKind {
        match self.status {
            401 | 403 => ErrorKind::Denied,
            404 | 410 => ErrorKind::NotFound,
            412 | 416 => ErrorKind::SourceChanged,
            405 | 501 => ErrorKind::Unsupported,
            507 => ErrorKind::NoSpace,
            400..=499 => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(status: u16, code: &str) -> Trouble {
        Trouble {
            class: Trouble::class_of(status, code),
            status,
            code: code.to_owned(),
            message: "so it is".to_owned(),
            request_id: Some("R1".to_owned()),
            retry_after: None,
        }
    }

    #[test]
    fn causes_have_classes() {
        for (status, code, class) in [
            (503, "SlowDown", Class::Throttled),
            (503, "", Class::Throttled),
            (429, "", Class::Throttled),
            (200, "SlowDown", Class::Throttled),
            (400, "RequestLimitExceeded", Class::Throttled),
            (500, "InternalError", Class::Transient),
            (200, "InternalError", Class::Transient),
            (502, "", Class::Transient),
            (504, "", Class::Transient),
            (408, "", Class::Transient),
            (400, "RequestTimeout", Class::Transient),
            (400, "BadDigest", Class::Transient),
            (409, "ConditionalRequestConflict", Class::Transient),
            (403, "AccessDenied", Class::Fatal),
            (403, "", Class::Fatal),
            (404, "NoSuchBucket", Class::Fatal),
            (400, "AuthorizationHeaderMalformed", Class::Fatal),
            (301, "PermanentRedirect", Class::Fatal),
            (409, "BucketAlreadyExists", Class::Fatal),
            (501, "NotImplemented", Class::Fatal),
            (505, "", Class::Fatal),
        ] {
            assert_eq!(Trouble::class_of(status, code), class, "{status} {code}");
        }
    }

    #[test]
    fn an_error_tells_code_message_and_request() {
        let error = trouble(403, "SignatureDoesNotMatch").error("list", "s3://b".into());
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(!error.is_retryable());
        assert_eq!(
            error.report(),
            "permission denied: list in s3://b (check the key and its secret): the store answered \
             403 SignatureDoesNotMatch: so it is (request R1)"
        );
        assert_eq!(
            Trouble::class(&trouble(503, "SlowDown").error("l", "p".into())),
            Class::Throttled
        );
        let plain = Error::new(ErrorKind::Unavailable, "connect");
        assert_eq!(Trouble::class(&plain), Class::Transient);
    }

    #[test]
    fn kinds_tell_what_to_do() {
        for (status, code, kind) in [
            (404, "NoSuchBucket", ErrorKind::NotFound),
            (403, "RequestTimeTooSkewed", ErrorKind::Denied),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid),
            (507, "", ErrorKind::NoSpace),
            (501, "NotImplemented", ErrorKind::Unsupported),
            (412, "PreconditionFailed", ErrorKind::SourceChanged),
            (503, "SlowDown", ErrorKind::Unavailable),
            (400, "MalformedXML", ErrorKind::Invalid),
            (307, "", ErrorKind::Invalid),
            (505, "", ErrorKind::Io),
        ] {
            assert_eq!(trouble(status, code).kind().0, kind, "{status} {code}");
        }
    }
}
