//! Measures explanations, profiles and rankings, and writes one report
