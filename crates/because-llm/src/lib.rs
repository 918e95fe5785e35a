//! Lets a program talk to any chat model: cached, limited, resumable, replayable
