//! The config as used: resolved, checked, defaults beside the fields.
