// Back from fresh.html to the page, as it was asked for, without an entry in the tab's history.
location.replace(`./${location.search}`);
