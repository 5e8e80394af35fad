"use strict";
(() => {
  const root = document.documentElement;
  const drawings = JSON.parse(document.getElementById("drawings").textContent);

  // Theme: the system's until the reader chooses; charts follow.
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = null;

  function applyTheme(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
  }

  // Charts.
  const figures = new Map();

  function themed(layout) {
    const style = getComputedStyle(root);
    const of = (key) => style.getPropertyValue(key).trim();
    const axis = (given) => ({
      gridcolor: of("--grid"), linecolor: of("--rule"), zerolinecolor: of("--zero"), zerolinewidth: 1.5,
      tickfont: { color: of("--muted"), size: 12 }, automargin: true, fixedrange: true, ...given,
      title: { font: { color: of("--muted"), size: 13 }, standoff: 12, ...given.title },
    });
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: of("--text"), size: 13 },
      margin: { l: 8, r: 12, t: 28, b: 8 }, // at the top, room for the button that saves the picture
      hovermode: "closest", dragmode: false,
      hoverlabel: {
        bgcolor: of("--surface"), bordercolor: of("--rule"), align: "left", namelength: -1,
        font: { color: of("--text"), size: 13 },
      },
      xaxis: axis({ ...layout.xaxis }),
      yaxis: axis({ ...layout.yaxis }),
      shapes: (layout.shapes || []).map((shape) => ({
        ...shape, line: { color: of(shape.name === "target" ? "--muted" : "--grid"), width: 1, ...shape.line },
      })),
      annotations: (layout.annotations || []).map((note) => ({ ...note, font: { color: of("--muted"), size: 12 } })),
    };
  }

  // Slanted labels need room: on a narrow screen every second or third name is enough.
  function thinned(axis, width) {
    const step = Math.ceil((18 * (axis.tickvals || []).length) / width);
    if (axis.type !== "category" || !axis.tickangle || step < 2) return axis;
    const kept = (list) => list.filter((_, place) => place % step === 0);
    return { ...axis, tickvals: kept(axis.tickvals), ticktext: kept(axis.ticktext) };
  }

  function draw(key) {
    const { drawing, places, hidden, view } = figures.get(key);
    drawing.panels.forEach((panel, i) => {
      const traces = structuredClone(panel.views[Math.min(view, panel.views.length - 1)]);
      for (const trace of traces) {
        trace.visible = !hidden.has(trace.meta.norm);
        for (const bar of [trace.error_x, trace.error_y]) {
          // JSON's null would count as zero and draw a stub; undefined draws nothing.
          if (bar) for (const end of ["array", "arrayminus"]) bar[end] = bar[end].map((value) => value ?? undefined);
        }
        if (trace.type === "bar") trace.error_x.color = getComputedStyle(root).getPropertyValue("--text").trim();
      }
      const config = {
        responsive: true, displaylogo: false, modeBarButtons: [["toImage"]],
        toImageButtonOptions: { format: "svg", filename: `${key}-${i + 1}` },
      };
      const paint = places[i].data ? Plotly.react : Plotly.newPlot;
      const layout = structuredClone(panel.layout);
      layout.xaxis = thinned(layout.xaxis, places[i].clientWidth || 1);
      if (panel.spans && panel.spans[view]) layout.yaxis.range = panel.spans[view];
      paint(places[i], traces, themed(layout), config);
    });
  }

  // One chart at a time, with a pause between them: the page can be read and scrolled meanwhile.
  let turn = 0;
  async function drawAll() {
    turn += 1;
    const mine = turn;
    for (const key of figures.keys()) {
      await new Promise((resume) => setTimeout(resume));
      if (mine !== turn) return;
      draw(key);
    }
  }

  applyTheme(system.matches);
  for (const drawing of drawings) {
    const figure = document.getElementById(`chart-${drawing.key}`);
    const state = { drawing, places: [...figure.querySelectorAll(".plot")], hidden: new Set(), view: 0 };
    figures.set(drawing.key, state);
    for (const entry of figure.querySelectorAll("[data-norm]")) {
      entry.addEventListener("click", () => {
        const norm = entry.dataset.norm;
        if (!state.hidden.delete(norm)) state.hidden.add(norm);
        entry.setAttribute("aria-pressed", String(!state.hidden.has(norm)));
        draw(drawing.key);
      });
    }
    const choice = figure.querySelector("[data-choice]");
    if (choice) {
      choice.value = "0"; // a reloaded page may remember another
      choice.addEventListener("change", () => {
        state.view = Number(choice.value);
        draw(drawing.key);
      });
    }
  }
  drawAll();

  button.addEventListener("click", () => {
    chosen = root.dataset.theme !== "dark";
    applyTheme(chosen);
    drawAll();
  });
  system.addEventListener("change", () => {
    if (chosen === null) {
      applyTheme(system.matches);
      drawAll();
    }
  });
  let before = false;
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme === "dark";
    if (before) {
      applyTheme(false);
      for (const key of figures.keys()) draw(key);
    }
  });
  window.addEventListener("afterprint", () => {
    if (before) {
      applyTheme(true);
      drawAll();
    }
  });

  // Tables: a heading sorts up, then down; what is missing stays last either way.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        const sign = direction === "ascending" ? 1 : -1;
        const compare = heading.dataset.sort === "number"
          ? (a, b) => Number(a) - Number(b)
          : (a, b) => a.localeCompare(b, undefined, { numeric: true });
        const rows = [...table.tBodies[0].rows];
        rows.sort((first, second) => {
          const a = first.cells[column].dataset.value;
          const b = second.cells[column].dataset.value;
          return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
        });
        for (const other of headings) other.setAttribute("aria-sort", other === heading ? direction : "none");
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
