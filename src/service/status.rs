//! One engine state ↔ each cloud's statuses: the only table of them. Pure.

use crate::job::JobState;
use crate::service::model::CopyState;

/// Where a copy stands, in the words that all clouds can be told in.
///
/// ```text
/// Queued → Copying → Committing → Done
///    │        │           │
///    │        ├→ Failed ←─┤
///    └────────┴→ Cancelled┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its turn.
    Queued,
    /// Bytes move.
    Copying,
    /// All bytes are there; the image is being published.
    Committing,
    /// The image is available.
    Done,
    /// It failed.
    Failed,
    /// It was cancelled, and its image is gone.
    Cancelled,
}

/// How one stage is called by each cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Words {
    /// The stage.
    pub stage: Stage,
    /// `Status` of the image in Alibaba ECS; `None`: the image is gone.
    pub alibaba: Option<&'static str>,
    /// `status` of the image in Baidu BCC; `None`: the image is gone.
    pub baidu: Option<&'static str>,
    /// `status` of the job in Huawei IMS.
    pub huawei_job: &'static str,
    /// `status` of the image in Huawei IMS; `None`: the image is gone.
    pub huawei_image: Option<&'static str>,
}

/// The table.
pub const WORDS: [Words; 6] = [
    words(Stage::Queued, Some("Waiting"), Some("Creating"), "INIT", Some("queued")),
    words(Stage::Copying, Some("Creating"), Some("Creating"), "RUNNING", Some("saving")),
    words(Stage::Committing, Some("Creating"), Some("Creating"), "RUNNING", Some("saving")),
    words(Stage::Done, Some("Available"), Some("Available"), "SUCCESS", Some("active")),
    words(Stage::Failed, Some("CreateFailed"), Some("CreateFailed"), "FAIL", Some("killed")),
    words(Stage::Cancelled, None, None, "FAIL", None),
];

const fn words(
    stage: Stage,
    alibaba: Option<&'static str>,
    baidu: Option<&'static str>,
    huawei_job: &'static str,
    huawei_image: Option<&'static str>,
) -> Words {
    Words { stage, alibaba, baidu, huawei_job, huawei_image }
}

impl Stage {
    /// Every stage, in the order of the table.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Copying, Self::Committing, Self::Done, Self::Failed, Self::Cancelled];

    /// What each cloud calls it.
    pub fn words(self) -> &'static Words {
        match self {
            Self::Queued => &WORDS[0],
            Self::Copying => &WORDS[1],
            Self::Committing => &WORDS[2],
            Self::Done => &WORDS[3],
            Self::Failed => &WORDS[4],
            Self::Cancelled => &WORDS[5],
        }
    }

    /// The stable name, as in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Copying => "copying",
            Self::Committing => "committing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// Where a copy stands, from what is kept of it and from what the engine says while it runs.
    ///
    /// Only what is kept ends a copy: the engine's word for its end is told once it is on record.
    pub fn of(kept: &CopyState, engine: Option<JobState>) -> Self {
        match kept {
            CopyState::Waiting => Self::Queued,
            CopyState::Done => Self::Done,
            CopyState::Failed { .. } => Self::Failed,
            CopyState::Cancelled => Self::Cancelled,
            CopyState::Running => match engine {
                Some(JobState::Committing | JobState::Committed) => Self::Committing,
                _ => Self::Copying,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_table_has_a_line_for_each_stage_in_its_place() {
        for (stage, line) in Stage::ALL.into_iter().zip(WORDS) {
            assert_eq!(line.stage, stage);
            assert_eq!(stage.words(), &line);
            // An image is gone in all clouds or in none.
            let gone = [line.alibaba, line.baidu, line.huawei_image].map(|word| word.is_none());
            assert_eq!(gone, [stage == Stage::Cancelled; 3], "{stage:?}");
        }
    }

    #[test]
    fn every_state_of_the_engine_is_a_stage_and_none_ends_a_copy() {
        for engine in JobState::ALL.into_iter().map(Some).chain([None]) {
            let running = Stage::of(&CopyState::Running, engine);
            assert!(!running.is_final(), "{engine:?}");
            let failed = CopyState::Failed { kind: ErrorKind::Io, message: String::new() };
            for (kept, stage) in [
                (CopyState::Waiting, Stage::Queued),
                (CopyState::Done, Stage::Done),
                (failed, Stage::Failed),
                (CopyState::Cancelled, Stage::Cancelled),
            ] {
                assert_eq!(Stage::of(&kept, engine), stage);
                assert_eq!(kept.is_final(), stage.is_final());
            }
        }
    }
}
