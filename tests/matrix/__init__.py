"""What flask-sequence is used with: releases of other packages, drivers, pools, places."""
