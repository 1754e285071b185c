"""Diagrams of graphs: before and after each pass, in a notebook, in DOT and SVG. Imported as fxq.visualize."""

if __name__ != "fxq.visualize":
    raise ImportError("import this package as fxq.visualize, not as visualize")

from fxq.visualize.diagram import Diagram as Diagram
from fxq.visualize.diagram import diagram as diagram
from fxq.visualize.directory import DiagramWriter as DiagramWriter
from fxq.visualize.dot import to_dot as to_dot
from fxq.visualize.render import RenderResult as RenderResult
from fxq.visualize.render import render as render
