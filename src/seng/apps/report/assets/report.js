"use strict";
// One state, one function that draws it; every control changes the state and draws again.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const state = {
    theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
    hidden: new Set(),
    training: true,
    run: data.runs.findIndex((run) => run.layers.length > 0),
    layer: null,
  };
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "resetScale2d"]],
  };

  // Plotly reads a little HTML in texts, and names are not ours to trust.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const label = (number) => plain(`${data.runs[number].name} (${data.runs[number].optimizer})`);
  const along = (colours, position) => colours[Math.round(position * (colours.length - 1))];

  function shown(line) {
    if (line.role === "layer" && state.layer === null)
      return line.run === state.run && data.runs[line.run].shown.includes(line.layer);
    if (state.hidden.has(line.run)) return false;
    return line.role === "layer" ? line.layer === state.layer : line.role !== "training" || state.training;
  }

  function colour(line, theme) {
    if (line.role !== "layer" || state.layer !== null) return theme.runs[line.run % theme.runs.length];
    const layers = data.runs[line.run].layers;
    return along(theme.depth, layers.length > 1 ? layers.indexOf(line.layer) / (layers.length - 1) : 0);
  }

  function trace(line, panel, theme) {
    const few = line.x.length <= (line.role === "test" ? 60 : 1) || panel.key === "spectrum" && line.x.length <= 16;
    const faint = line.role === "training";
    const name = line.layer === null ? label(line.run) : `layer ${plain(line.layer)}, ${label(line.run)}`;
    const kind = faint ? ", training" : "";
    return {
      x: line.x,
      y: line.y,
      name: name,
      meta: { run: line.run, role: line.role, layer: line.layer },
      mode: few ? "lines+markers" : "lines",
      opacity: faint ? 0.38 : 1,
      line: {
        color: colour(line, theme),
        width: faint ? 1 : line.role === "layer" ? 1.6 : 2.2,
        dash: line.run >= theme.runs.length ? "dash" : "solid",
      },
      marker: { size: 5 },
      hovertemplate:
        `<b>${name}</b>${kind}<br>${panel.percent ? "%{y:.2%}" : "%{y:.4g}"}` +
        `<br>%{x:,.6~g} ${panel.x_label}<extra></extra>`,
    };
  }

  function layout(theme, xaxis, yaxis) {
    const axis = {
      gridcolor: theme.rule, linecolor: theme.rule, zeroline: false, automargin: true,
      tickfont: { color: theme.faint, size: 12 }, exponentformat: "power",
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: theme.ink, size: 13 },
      margin: { l: 48, r: 12, t: 10, b: 44 },
      showlegend: false,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.faint, activecolor: theme.ink, orientation: "v" },
      hovermode: "closest",
      hoverlabel: { bgcolor: theme.card, bordercolor: theme.rule, font: { color: theme.ink }, align: "left" },
      dragmode: touch ? false : "zoom",
      uirevision: "kept", // a zoom outlives the controls
      xaxis: { ...axis, ...xaxis },
      yaxis: { ...axis, ...yaxis },
    };
  }

  // Powers of ten where there are many; 1, 2 and 5 where there are few; what fits within less than one.
  function ticks(low, high) {
    const decades = Math.log10(high / low);
    if (decades > 3) return { dtick: Math.ceil(decades / 6) };
    return { tickformat: "~g", dtick: decades > 0.8 ? "D2" : undefined };
  }

  function drawPanel(panel, theme) {
    const lines = panel.lines.filter(shown);
    const xaxis = {
      title: { text: panel.x_label, font: { color: theme.faint, size: 12 }, standoff: 6 },
      ...(panel.log_x ? { type: "log", dtick: "D2", tickformat: "~g" } : { type: "linear" }),
    };
    const yaxis = { type: panel.log_y ? "log" : "linear", tickformat: panel.percent ? ",.0%" : undefined };
    if (panel.log_y) {
      const positive = lines.flatMap((line) => line.y).filter((y) => y > 0);
      const extremes = positive.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, 0]);
      Object.assign(yaxis, ticks(...(panel.span ?? extremes)));
    }
    if (panel.span !== null) yaxis.range = panel.log_y ? panel.span.map(Math.log10) : panel.span;
    Plotly.react(`plot-${panel.key}`, lines.map((line) => trace(line, panel, theme)), layout(theme, xaxis, yaxis), config);
  }

  function drawParts(theme) {
    if (!byId("plot-parts")) return;
    const numbers = data.runs.map((_, k) => k).filter((k) => !state.hidden.has(k) && Object.keys(data.step[k]).length);
    byId("plot-parts").style.height = `${130 + 52 * Math.max(3, numbers.length)}px`;
    const traces = Object.entries(data.parts).map(([part, words], k) => ({
      type: "bar",
      orientation: "h",
      name: words,
      x: numbers.map((n) => 1000 * (data.step[n][part] || 0)),
      y: numbers.map((_, k) => k),
      text: numbers.map(label),
      textposition: "none",
      marker: { color: theme.parts[k] },
      hovertemplate: `<b>${words}</b><br>%{x:.4g} ms a step, %{text}<extra></extra>`,
    }));
    const drawn = layout(
      theme,
      { title: { text: "milliseconds", font: { color: theme.faint, size: 12 }, standoff: 6 } },
      { visible: false, range: [numbers.length - 0.5, -0.75] },
    );
    const annotations = numbers.map((n, k) => ({
      text: label(n), x: 0, xref: "paper", xanchor: "left", y: k - 0.3, yanchor: "bottom", showarrow: false,
    }));
    const legend = { orientation: "h", traceorder: "normal", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" };
    Plotly.react("plot-parts", traces, { ...drawn, annotations, barmode: "stack", bargap: 0.55, showlegend: true, legend }, config);
  }

  function draw() {
    document.documentElement.dataset.theme = state.theme;
    const theme = data.themes[state.theme];
    byId("theme").textContent = state.theme === "dark" ? "light" : "dark";
    byId("training").setAttribute("aria-pressed", state.training);
    for (const button of document.querySelectorAll("button[data-run]"))
      button.setAttribute("aria-pressed", !state.hidden.has(Number(button.dataset.run)));
    for (const panel of data.panels) drawPanel(panel, theme);
    drawParts(theme);
    describeLayers();
  }

  function listLayers() {
    const { layers } = data.runs[state.run];
    const options = [new Option("all, by depth", "")].concat(layers.map((layer, k) => new Option(layer, k)));
    byId("choose-layer").replaceChildren(...options);
    state.layer = null;
  }

  function describeLayers() {
    if (state.run < 0) return;
    const { layers, shown } = data.runs[state.run];
    const some = shown.length < layers.length ? `${shown.length} of ${layers.length} layers, evenly spaced. ` : "";
    byId("layers-note").textContent =
      state.layer === null ? `${some}From the first layer (dark) to the last (light).` : "This layer in all runs that have it.";
  }

  function control(id, event, change) {
    byId(id)?.addEventListener(event, (happened) => { change(happened.target); draw(); });
  }

  for (const button of document.querySelectorAll("button[data-run]"))
    button.addEventListener("click", () => {
      const number = Number(button.dataset.run);
      if (!state.hidden.delete(number)) state.hidden.add(number);
      draw();
    });
  control("training", "click", () => { state.training = !state.training; });
  control("theme", "click", () => { state.theme = state.theme === "dark" ? "light" : "dark"; });
  control("choose-run", "change", (select) => { state.run = Number(select.value); listLayers(); });
  control("choose-layer", "change", (select) => {
    state.layer = select.value === "" ? null : data.runs[state.run].layers[Number(select.value)];
  });
  if (state.run >= 0) listLayers();
  draw();
})();
