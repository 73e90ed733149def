// The page's own controls: claims by verdict, rows folded away, everything unfolded for print.
"use strict";

document.documentElement.classList.add("js");

function wireClaims() {
  const claims = [...document.querySelectorAll(".claims > li")];
  const buttons = [...document.querySelectorAll(".filters button")];
  const shown = document.querySelector(".shown");
  buttons.forEach((button) => button.addEventListener("click", () => {
    const kind = button.dataset.kind;
    buttons.forEach((other) => other.setAttribute("aria-pressed", `${other === button}`));
    claims.forEach((claim) => { claim.hidden = kind !== "" && claim.dataset.kind !== kind; });
    shown.textContent = `${claims.filter((claim) => !claim.hidden).length} of ${claims.length} claims shown`;
  }));
}

function wireTables() {
  document.querySelectorAll(".more").forEach((button) => {
    const table = button.parentElement.querySelector("table");
    const count = +button.dataset.count, rows = count === 1 ? "row" : `${count} rows`;
    const label = () => {
      const open = table.classList.contains("all");
      button.textContent = open ? `Hide the ${rows} without runs of ours` : `Show the ${rows} without runs of ours`;
      button.setAttribute("aria-expanded", `${open}`);
    };
    button.hidden = false;
    button.addEventListener("click", () => { table.classList.toggle("all"); label(); });
    label();
  });
}

function wirePrint() {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
}

function wireFigures() {
  const curves = JSON.parse(document.getElementById("curves").textContent);
  const figures = [...document.querySelectorAll(".live")];
  const panels = figures.flatMap((figure) => wireFigure(figure, curves[figure.dataset.figure]));
  const redraw = () => panels.forEach((panel) => panel.plot.redraw(false, true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

wireClaims();
wireTables();
wirePrint();
wireFigures();
