"use strict";
// Charts: the values nearest to the pointer stand beside the title.
for (const chart of document.querySelectorAll("svg.chart")) {
  const out = chart.parentElement.querySelector("output.at");
  const marks = [...chart.querySelectorAll("circle, rect")].filter((mark) => mark.firstElementChild).map((mark) => {
    const [where, what] = mark.firstElementChild.textContent.split(/: (.*)/s);
    const left = Number(mark.getAttribute("cx") ?? mark.getAttribute("x"));
    return { x: left + Number(mark.getAttribute("width") ?? 0) / 2, where, what };
  });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("class", "hover");
  const leave = () => { out.textContent = ""; line.remove(); };
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * chart.viewBox.baseVal.width;
    let near = null;
    for (const mark of marks) if (!near || Math.abs(mark.x - x) < Math.abs(near.x - x)) near = mark;
    if (!near) return;
    const here = marks.filter((mark) => mark.where === near.where).map((mark) => mark.what);
    out.textContent = `${near.where}: ${here.join(", ")}`;
    for (const end of ["x1", "x2"]) line.setAttribute(end, near.x);
    line.setAttribute("y1", 12);
    line.setAttribute("y2", chart.viewBox.baseVal.height - 38);
    chart.append(line);
  });
}
// Samples: one slider moves every example to the last step that it has up to there.
const slider = document.querySelector(".slider");
if (slider) {
  const steps = slider.dataset.steps.split(" ").map(Number);
  const input = slider.querySelector("input");
  const show = () => {
    const step = steps[Number(input.value)];
    slider.querySelector("output").textContent = step;
    for (const sample of document.querySelectorAll(".sample")) {
      const states = [...sample.querySelectorAll(".state")];
      const past = states.filter((state) => Number(state.dataset.step) <= step);
      for (const state of states) state.open = state === (past.at(-1) ?? states[0]);
    }
  };
  slider.hidden = false;
  slider.parentElement.classList.add("slid");
  input.addEventListener("input", show);
  show();
}
