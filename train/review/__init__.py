"""What people decide by: label audit, promotion, drift, and Label Studio as the place where they label."""
