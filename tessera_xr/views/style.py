"""How the explorer looks, and the keys that it listens to."""

from __future__ import annotations

import anywidget
import ipywidgets as widgets
import traitlets

CSS = """<style>
.tessera-explorer { --tessera-gap: 8px; font-size: 13px; outline: none; }
.tessera-legend { background: rgba(255,255,255,.92); color: #222; padding: 6px 8px; border-radius: 4px; font-size: 12px;
  line-height: 1.35; max-width: 230px; max-height: 330px; overflow: auto; }
.tessera-legend > div + div { margin-top: 6px; }
.tessera-swatch { display: inline-block; width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px;
  border: 1px solid #0003; }
.tessera-bar { height: 10px; width: 200px; margin-top: 3px; }
.tessera-ends { display: flex; justify-content: space-between; width: 200px; }
.tessera-mark { box-sizing: border-box; width: 24px; height: 24px; border-radius: 12px; line-height: 20px;
  text-align: center; font-weight: bold; border: 2px solid #fff; color: #fff; box-shadow: 0 0 3px #000a; }
.tessera-like { background: #0072b2; } .tessera-unlike { background: #d55e00; }
.tessera-found { background: #fff; color: #000; border-color: #000; }
.tessera-suggested { background: #f0e442; color: #000; border-color: #000; }
.tessera-status > div, .tessera-status .widget-html-content > div { min-height: 20px; line-height: 1.3; }
.tessera-error { color: #b00020; } .tessera-work { opacity: .7; } .tessera-note { opacity: .85; }
.tessera-explorer .widget-html-content table { border-collapse: collapse; font-size: 12px; }
.tessera-explorer .widget-html-content td, .tessera-explorer .widget-html-content th { padding: 2px 6px; }
.tessera-panel { overflow: auto; }
.leaflet-div-icon:has(> .tessera-mark) { background: none; border: none; pointer-events: none !important; }
.tessera-map .leaflet-overlay-pane path { pointer-events: none !important; }  /* clicks are the map's */
.tessera-explorer .lm-TabBar-tab { flex: 1 1 auto !important; min-width: 0 !important; padding: 0 6px !important; }
</style>"""

KEYS = """
export default {
  render({ model, el }) {
    el.style.display = "none";
    let root = null;
    const typing = (t) => t.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(t.tagName);
    const pressed = (e) => {
      if (e.repeat || e.ctrlKey || e.metaKey || e.altKey || typing(e.target) && e.target.type !== "range") return;
      if (!model.get("listened").includes(e.key)) return;
      e.preventDefault();
      // or a notebook in command mode would take the letter for its own; immediate, so that a page that rendered this
      // twice sends it once
      e.stopImmediatePropagation();
      // clicks before it must arrive before it, and JupyterLab may send them another way, a little slower
      const key = e.key;
      setTimeout(() => model.send({ key }), 150);
    };
    const find = () => {
      root = el.closest(".tessera-explorer");
      if (root) {
        root.tabIndex = -1;
        root.addEventListener("keydown", pressed, true);
      }
      else if (el.isConnected || tries++ < 100) requestAnimationFrame(find);
    };
    let tries = 0;
    find();
    return () => root && root.removeEventListener("keydown", pressed, true);
  },
};
"""


def style_sheet() -> widgets.HTML:
    """Return a widget that shows nothing and brings the style along."""
    return widgets.HTML(CSS, layout=widgets.Layout(display="none"))


class Keys(anywidget.AnyWidget):
    """Listens to keys pressed anywhere in the explorer but in fields for text."""

    _esm = KEYS
    listened = traitlets.List(traitlets.Unicode()).tag(sync=True)
