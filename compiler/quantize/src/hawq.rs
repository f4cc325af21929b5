//! HAWQ-V3's published bit configurations.
