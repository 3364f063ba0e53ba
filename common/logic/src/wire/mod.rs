//! What agent and replica say to each other.
