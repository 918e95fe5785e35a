//! Examples of `because`; each file beside this one is a program.
