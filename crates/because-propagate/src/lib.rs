//! PGHIS: initial profiles, then messages between profiles in text, layer by layer
