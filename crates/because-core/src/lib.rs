//! The words every stage shares (ids, interactions, profiles, explanations, SFT examples) and the files they are stored in
