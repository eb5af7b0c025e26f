"""Data sets in the formats that other tools read and write: one file each, its reader beside its writer."""
