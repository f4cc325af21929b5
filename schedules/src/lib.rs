//! What a schedule is, what is legal for a kernel spec on a target, and the default choice.
