// Tables sort by the column whose name is pressed: numbers by value, words by letter.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const order = (a, b) => {
        const [one, other] = [key(a), key(b)];
        if (typeof one === "number" && typeof other === "number") return one - other;
        return String(one).localeCompare(String(other));
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => (down ? -order(a, b) : order(a, b)));
      body.append(...rows);
    });
  });
}
