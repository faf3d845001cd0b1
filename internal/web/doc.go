// Package web is the page: the whole fleet on one screen, for a browser.
//
//	web.go         serves it
//	page/          what is served, as it was written: there is no build step
//	  index.html   the places of the screen
//	  style.css    light and dark, from a phone's width on
//	  main.js      what is where: the stream, the views, the address bar
//	  api.js       questions to /api/v1, the stream, the token
//	  dom.js       elements; the only module that makes any
//	  format.js    numbers and times as people read them
//	  fleet.js     a tile per firewall
//	  top.js       who has the most
//	  alerts.js    what fires, and what did within the last hour
//	  deeds.js     what the responder and operators did
//	  story.js     all that is known of one address, or of one firewall
//
// The page asks nobody but the server it came from, and shows what it hears as text:
// no name, key or reason from the bus becomes markup. It only reads. The files hold
// nothing that is secret, so they are served to everybody who reaches the address;
// what they ask for is served to those who have the token.
package web
