// Behaviour of the report page: theme, layers of the overlays, and the sortable table of cases.
const root = document.documentElement;
document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
for (const box of document.querySelectorAll("[data-hide]")) {
  box.onchange = () => document.body.classList.toggle(box.dataset.hide, !box.checked);
}

const data = JSON.parse(document.getElementById("scores").textContent);
const table = document.getElementById("cases");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
let column = -1, ascending = true;

const text = (v) => (v === null ? "–" : v.toFixed(Math.abs(v) >= 100 ? 1 : Math.abs(v) >= 10 ? 2 : 3));

function sort(c, up) {
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [a, b].map((row) => (c ? row.cells[c].dataset.v : row.cells[0].textContent));
    if (!c) return x.localeCompare(y, undefined, { numeric: true }) * (up ? 1 : -1);
    if (x === "" || y === "") return (x === "") - (y === ""); // undefined values last, whichever way
    return (x - y) * (up ? 1 : -1);
  });
  body.append(...rows);
  heads.forEach((h, i) => (i === c ? h.setAttribute("aria-sort", up ? "ascending" : "descending") : h.removeAttribute("aria-sort")));
  [column, ascending] = [c, up];
}

function show(metric) {
  for (const row of body.rows) {
    data.values[metric][row.dataset.i].forEach((v, k) => {
      const cell = row.cells[k + 1];
      cell.dataset.v = v === null ? "" : v;
      cell.querySelector("span").textContent = text(v);
      cell.querySelector("i").style.width = data.share[metric] && v !== null ? `${100 * Math.max(0, Math.min(1, v))}%` : 0;
    });
  }
  if (column > 0) sort(column, ascending);
}

heads.forEach((h, i) => (h.onclick = () => sort(i, column === i ? !ascending : true)));
document.getElementById("metric").onchange = (event) => show(event.target.value);
