// Shows each time in the reader's own zone and form. Without this script it stays in UTC.
for (const element of document.querySelectorAll("time")) {
  const form = { dateStyle: element.dataset.only === "time" ? undefined : "medium", timeStyle: "short" };
  element.textContent = new Intl.DateTimeFormat(undefined, form).format(new Date(element.dateTime));
}
