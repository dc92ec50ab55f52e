//! Skeleton.

pub mod doctor;
