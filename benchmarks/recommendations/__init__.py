"""Parts of the suite ``recommend``: a shop's log, its visitors, what is right, and clicks."""
