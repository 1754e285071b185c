"""The maths of corrections: what makes a quantised layer come nearer to its float original. The passes apply it."""
