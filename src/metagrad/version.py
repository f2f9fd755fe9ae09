"""Which version this is; read where results are recorded, without the rest of the package."""

VERSION = "0.2.0"
