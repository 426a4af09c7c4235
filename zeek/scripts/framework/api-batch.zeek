##! The head of a batch of rows, which public types refer to.

module ZeekAgentAPI;

export {
	## What a batch of rows is part of. A query's result travels as one or more batches.
	type Batch: record {
		## Id of the agent's event store. With a row's ``seq`` it names an event for good.
		store: string;
		## Id of what the query is, the same over restarts of the agent and of Zeek.
		stream: string;
		## Events after this number
		low: count;
		## up to this one make up the result. Both are 0 for what is not events.
		high: count;
		## Number of the batch within the result, from 0.
		index: count;
		## Whether it is the result's last one.
		last: bool;
	};
}
