// Click a column head to sort the neurons; rows without a number stay at the end either way.
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    var button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", function () {
      var descending = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      var body = table.tBodies[0];
      var rows = Array.from(body.rows);
      rows.sort(function (a, b) {
        var x = a.cells[column], y = b.cells[column];
        if (!head.classList.contains("num")) {
          var order = x.textContent.localeCompare(y.textContent, undefined, { numeric: true });
          return descending ? -order : order;
        }
        var u = parseFloat(x.dataset.value), v = parseFloat(y.dataset.value);
        if (isNaN(u) || isNaN(v)) return (isNaN(u) ? 1 : 0) - (isNaN(v) ? 1 : 0);
        return descending ? v - u : u - v;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
