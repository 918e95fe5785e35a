use std::time::Duration;

/// What a server says, beside an answer or a refusal, of how much more it will take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Calls.
    pub requests: Option<Allowance>,
    /// Tokens, those of prompt and answer together.
    pub tokens: Option<Allowance>,
}

/// One of the [`RateLimits`]. Over which time the limit is counted, a server does not say: some count minutes, some days.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    /// As many as there ever are.
    pub limit: Option<u64>,
    /// What is left of them.
    pub remaining: Option<u64>,
    /// When they are all there again.
    pub resets_in: Option<Duration>,
}

impl Allowance {
    /// Until there is something again, where there is nothing now.
    fn exhausted_for(&self) -> Option<Duration> {
        self.resets_in.filter(|_| self.remaining == Some(0))
    }
}

impl RateLimits {
    /// How long nothing more will be taken, where that is said.
    #[must_use]
    pub fn exhausted_for(&self) -> Option<Duration> {
        let of = |allowance: &Option<Allowance>| allowance.and_then(|it| it.exhausted_for());
        of(&self.requests).max(of(&self.tokens))
    }
}
